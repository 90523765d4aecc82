"""The bundled model: loads as any pipeline, draws what is asked, shows where it will be."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from attnctl.shapes import bundled, model_folder, prompts, verify
from attnctl.shapes.evaluate import (
    SamplingSettings,
    draw_pictures,
    load_shapes,
    save_sheet,
    summarise,
)
from attnctl.shapes.gate import measure


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_shapes()


def test_model_is_small_and_an_ordinary_pipeline(pipeline: StableDiffusionPipeline) -> None:
    files = [path for path in model_folder("shapes").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 2**20
    assert type(pipeline) is StableDiffusionPipeline
    assert pipeline.safety_checker is None
    heads = {
        module.heads for name, module in pipeline.unet.named_modules() if name.endswith("attn2")
    }
    assert heads == {4}


def test_model_draws_most_single_objects_right(pipeline: StableDiffusionPipeline) -> None:
    rows = [
        (prompt, picture, verify(picture, prompt.text))
        for prompt, picture in draw_pictures(
            pipeline, prompts("smoke", 1, 12), SamplingSettings(steps=12, batch=12)
        )
    ]
    assert summarise([verdict for _, _, verdict in rows])["all_right"]["count"] >= 10


def test_same_seed_draws_the_same_picture(pipeline: StableDiffusionPipeline) -> None:
    asked = prompts("smoke", 2, 1)
    settings = SamplingSettings(steps=2)
    first, second = (next(draw_pictures(pipeline, asked, settings))[1] for _ in range(2))
    assert (first == second).all()


def test_noun_maps_point_at_their_objects() -> None:
    with torch.no_grad():
        result = measure(load_shapes(), prompts("smoke", 2, 5), SamplingSettings(steps=15, batch=5))
    assert result["nouns"]["objects"] >= 2
    assert result["passed"]
    assert 0 < result["mass_on_words"] < 1


def test_sheet_shows_every_picture(tmp_path: Path, pipeline: StableDiffusionPipeline) -> None:
    drawn = list(draw_pictures(pipeline, prompts("smoke", 1, 2), SamplingSettings(steps=1)))
    save_sheet([(p, i, verify(i, p.text)) for p, i in drawn], tmp_path / "sheet.png", columns=2)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_unknown_models_are_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="shapes"):
        model_folder("shapes-none")
    with pytest.raises(ValueError, match="not a model name"):
        model_folder("../models")


def test_missing_weights_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shapes").mkdir()
    monkeypatch.setattr(bundled, "MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"attnctl\.shapes\.train shapes"):
        model_folder("shapes")
