"""The benchmark of whole pipelines at toy size: every model runs on a processor."""

import argparse
import json

import pytest
import torch

from benchmarks import pipelines
from benchmarks.models import MODELS
from benchmarks.pipelines import EXCITE


def arguments(folder, *models, **changes):
    given = {"device": "cpu", "repeats": 1, "steps": 2, "toy": True, "model": [*models]}
    return argparse.Namespace(**given, out=folder, **changes)


def result(folder):
    (path,) = folder.glob("*/pipelines-toy.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model_is_measured(model, tmp_path):
    pipelines.run(arguments(tmp_path, model.name))
    found = result(tmp_path)["models"][model.name]
    assert found["largest_map_bytes"] > 0
    sides = found["sides"]
    assert list(sides) == ["plain", "idle", "sparse-attention", "re-ttention", "heat-maps"]
    for name, side in sides.items():
        assert side.get("refused") or side["peak_bytes"] > 0
        assert name == "plain" or "refused" in side or side["speedup"]["median"] > 0
    for name in ("idle", "sparse-attention", "re-ttention"):
        assert "refused" not in sides[name]
    if model.pag is not None:
        pag = found["pag"]
        assert pag["effect"] > 0
        assert pag["outputs_should_agree"] == (model.name != "SD 3.5 medium")
        is_equal = pag["largest_difference"] < 1e-2 * pag["effect"]
        assert is_equal == pag["outputs_should_agree"]


def test_attend_and_excite_equals_diffusers(tmp_path):
    pipelines.run(arguments(tmp_path, EXCITE))
    found = result(tmp_path)["models"][EXCITE]
    assert found["largest_difference"] < 1e-4
    assert found["speedup"]["median"] > 0


def test_a_stopped_run_is_completed(tmp_path, monkeypatch):
    measured = []

    def measure(model, _arguments):
        measured.append(model.name)
        return {"name": model.name}

    monkeypatch.setattr(pipelines, "measure_model", measure)
    first, second = MODELS[0].name, MODELS[1].name
    pipelines.run(arguments(tmp_path, first))
    pipelines.run(arguments(tmp_path, first, second))
    assert measured == [first, second]
    assert set(result(tmp_path)["models"]) == {first, second}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_real_sizes_can_be_built(model):
    """Without memory for their weights."""
    import diffusers

    with torch.device("meta"):
        denoiser = getattr(diffusers, model.denoiser)(**model.real[0])
    millions = sum(parameter.numel() for parameter in denoiser.parameters()) / 1e6
    wanted = {"SDXL": 2567, "SD 3.5 medium": 2243, "FLUX.1": 11901, "PixArt-Sigma": 611}
    wanted |= {"CogVideoX-2b": 1690, "Wan 2.1 1.3B": 1419}
    assert millions == pytest.approx(wanted[model.name], rel=0.02)
