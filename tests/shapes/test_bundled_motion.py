"""The bundled model of clips: an ordinary AnimateDiff pipeline, small, that can be steered."""

import logging

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNetMotionModel

from attnctl import VSTAR, Recipe, attach, list_families, load_pipeline
from attnctl.engine.targets import name_of
from attnctl.errors import UnsupportedModelError
from attnctl.pipelines.text_to_image import draw
from attnctl.shapes import model_folder, prompts
from attnctl.shapes.evaluate import SamplingSettings, load_shapes
from attnctl.shapes.evaluate_clips import draw_clips, judge, summarise_clips
from attnctl.shapes.motion import ADAPTER

FEW = SamplingSettings(steps=3)


@pytest.fixture(scope="module")
def pipeline() -> AnimateDiffPipeline:
    return load_shapes("shapes-motion")


def test_model_is_small_and_an_ordinary_pipeline(pipeline: AnimateDiffPipeline) -> None:
    files = [path for path in model_folder("shapes-motion").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20
    assert type(pipeline) is AnimateDiffPipeline
    assert name_of(pipeline) == "shapes-motion"
    assert any("UNetMotionModel" in family.classes for family in list_families())


def test_diffusers_puts_the_adapter_on_shapes_without_us(pipeline: AnimateDiffPipeline) -> None:
    adapter = MotionAdapter.from_pretrained(model_folder("shapes-motion"), subfolder=ADAPTER)
    plain = AnimateDiffPipeline.from_pipe(load_pipeline("shapes"), motion_adapter=adapter.float())
    plain.set_progress_bar_config(disable=True)
    asked = prompts("smoke", 1, 1)
    (_, theirs), *_ = draw_clips(plain, asked, FEW, frames=4)
    (_, ours), *_ = draw_clips(pipeline, asked, FEW, frames=4)
    assert (theirs == ours).all()


def test_clips_show_their_object_in_most_frames(pipeline: AnimateDiffPipeline) -> None:
    asked = prompts("smoke", 1, 2)
    made = draw_clips(pipeline, asked, SamplingSettings(steps=12))
    summary = summarise_clips([judge(prompt, frames) for prompt, frames in made])
    assert summary["frames_right_percent"] >= 75
    assert summary["shake_px"] < 3


def test_temporal_attention_of_the_model_can_be_steered(pipeline: AnimateDiffPipeline) -> None:
    asked = prompts("smoke", 1, 1)
    (_, plain), *_ = draw_clips(pipeline, asked, FEW, frames=4)
    with attach(pipeline, [VSTAR()]), torch.no_grad():
        (_, steered), *_ = draw_clips(pipeline, asked, FEW, frames=4)
    (_, again), *_ = draw_clips(pipeline, asked, FEW, frames=4)
    assert abs(steered - plain).max() > 0.02
    assert (again == plain).all()


def test_a_model_of_clips_is_refused_where_pictures_are_wanted(
    pipeline: AnimateDiffPipeline,
) -> None:
    recipe = Recipe.from_dict({"model": "shapes-motion", "prompt": "a red circle", "seed": 1})
    with pytest.raises(UnsupportedModelError, match="makes clips, not pictures"):
        next(draw(pipeline, recipe))


def test_loading_says_nothing(
    pipeline: AnimateDiffPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("diffusers.models.modeling_utils")
    log.addHandler(caplog.handler)
    try:
        load_pipeline("shapes-motion")
        assert not caplog.records
        UNetMotionModel.from_unet2d(pipeline.unet, pipeline.motion_adapter, load_weights=False).to(
            torch.float32
        )
        assert caplog.records  # what is left out
    finally:
        log.removeHandler(caplog.handler)
