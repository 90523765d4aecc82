"""The perturbation benchmark: what it measures, not how long it took."""

import json

import pytest
import torch

from attnctl.bench import networks
from attnctl.bench.networks import parameters_of, stable_diffusion_3
from attnctl.bench.perturbation import NETWORKS, PerturbationSettings, measure, port_run
from attnctl.cli import main
from attnctl.errors import SettingError


@pytest.mark.parametrize("network", ["tiny", "tiny-unet"])
def test_both_sides_end_at_the_same_latents(network):
    record = measure(PerturbationSettings(network, repeats=2, steps=2, latents=16))
    assert len(record["places"]) == len(NETWORKS[network].places)
    for place in record["places"]:
        assert place["is_equal"]
        assert place["effect"] > 100 * place["largest_difference"]
        assert all(len(place[side]["rounds"]["cpu"]) == 2 for side in ("plain", "port", "ours"))


def test_sides_that_differ_are_called_different(monkeypatch):
    def weaker(pipe, place, settings):
        run = port_run(pipe, place, settings)
        return lambda: 0.9 * run()

    monkeypatch.setattr("attnctl.bench.perturbation.port_run", weaker)
    record = measure(PerturbationSettings("tiny", repeats=1))
    assert not any(place["is_equal"] for place in record["places"])


def test_command_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "perturbation.json"
    command = ["bench", "perturbation", "--network", "tiny", "--repeats", "2", "--out", str(out)]
    assert main([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    assert record["network"]["dtype"] == "float32"
    assert [place["where"] for place in record["places"]] == ["layers=2,joint", "layers=3,joint"]
    ratio = record["places"][0]["added_cpu_ratio"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert main(command) == 0
    assert "of what diffusers adds" in capsys.readouterr().out


def test_the_type_of_the_network_can_be_chosen():
    record = measure(PerturbationSettings("tiny", repeats=1, dtype="bfloat16"))
    assert record["network"]["dtype"] == "bfloat16"
    assert record["places"][0]["rounding"] > 1e-3


def test_the_large_network_has_the_size_of_stable_diffusion_3():
    with torch.device("meta"):
        transformer = stable_diffusion_3()
    assert parameters_of(transformer) == 2_028_328_000
    assert transformer.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
    assert len(transformer.transformer_blocks) == 24


def test_a_pipeline_without_encoders_goes_from_embeddings_to_latents():
    pipe = networks.pipeline_around_sd3(networks.small_sd3())
    assert pipe.text_encoder is pipe.vae is None
    assert pipe.vae_scale_factor == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "sd30"}, "'sd3'"),
        ({"latents": 12}, "multiple of 8"),
        ({"dtype": "float16"}, "'bfloat16'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        PerturbationSettings(**changes)
