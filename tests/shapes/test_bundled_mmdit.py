"""The bundled joint transformer: an ordinary Stable Diffusion 3 pipeline that can be steered."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from attnctl import PAG, attach, load_pipeline
from attnctl.shapes import model_folder, prompts, verify
from attnctl.shapes.evaluate import SamplingSettings, draw_pictures, load_shapes, summarise
from attnctl.shapes.gate import measure

ONE_ZERO_TOKEN = {"max_sequence_length": 1}


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    return load_shapes("shapes-mmdit")


def test_model_is_small_and_an_ordinary_pipeline(pipeline: StableDiffusion3Pipeline) -> None:
    files = [path for path in model_folder("shapes-mmdit").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    assert type(pipeline) is StableDiffusion3Pipeline
    assert pipeline.transformer.config.qk_norm == "rms_norm"
    assert pipeline.text_encoder_3 is None


def test_diffusers_loads_it_without_us(pipeline: StableDiffusion3Pipeline) -> None:
    loaded = StableDiffusion3Pipeline.from_pretrained(
        model_folder("shapes-mmdit"), text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    ours = load_pipeline("shapes-mmdit").transformer.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in loaded.transformer.state_dict().items())


def test_model_draws_most_single_objects_right(pipeline: StableDiffusion3Pipeline) -> None:
    asked = prompts("smoke", 1, 12)
    verdicts = [verify(picture, p.text) for p, picture in draw_pictures(pipeline, asked)]
    assert summarise(verdicts)["all_right"]["count"] >= 7


def test_number_of_zero_tokens_hardly_matters(pipeline: StableDiffusion3Pipeline) -> None:
    asked = prompts("smoke", 1, 4)
    few, many = (
        [p for _, p in draw_pictures(pipeline, asked, SamplingSettings(12, 4.0, options=options))]
        for options in (ONE_ZERO_TOKEN, {"max_sequence_length": 256})
    )
    apart = [abs(a - b).mean() for a, b in zip(few, many, strict=True)]
    others = [abs(a - b).mean() for a, b in zip(few, few[1:] + few[:1], strict=True)]
    assert sum(apart) < 0.5 * sum(others)


def test_noun_maps_point_at_their_objects(pipeline: StableDiffusion3Pipeline) -> None:
    settings = SamplingSettings(12, 4.0, batch=8, options=ONE_ZERO_TOKEN)
    with torch.no_grad():
        result = measure(pipeline, prompts("smoke", 2, 8), settings)
    assert result["nouns"]["objects"] >= 2
    assert result["passed"]


def test_guidance_on_joint_attention_moves_pictures(pipeline: StableDiffusion3Pipeline) -> None:
    settings = SamplingSettings(4, 4.0, options=ONE_ZERO_TOKEN)
    asked = prompts("smoke", 1, 1)
    plain = next(draw_pictures(pipeline, asked, settings))[1]
    with attach(pipeline, [PAG(scale=2, where="layers=3-4")]):
        guided = next(draw_pictures(pipeline, asked, settings))[1]
    again = next(draw_pictures(pipeline, asked, settings))[1]
    assert abs(guided - plain).max() > 0.05
    assert (again == plain).all()
