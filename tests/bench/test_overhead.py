"""The overhead benchmark: what it measures, not how long it took."""

import json

import pytest
import torch

import attnctl
from attnctl.bench.memory import peak_bytes
from attnctl.bench.networks import parameters_of, stable_diffusion_unet
from attnctl.bench.overhead import Idle, OverheadSettings, map_memory
from attnctl.bench.timing import ratio, take_turns
from attnctl.cli import main
from attnctl.errors import SettingError


def test_an_idle_technique_stands_at_every_layer_and_changes_nothing(tiny):
    def draw():
        generator = torch.Generator().manual_seed(1)
        return tiny("a red circle", num_inference_steps=2, generator=generator, output_type="np")

    plain = draw().images
    with attnctl.attach(tiny, [Idle()]) as session:
        assert f"{len(tiny.unet.attn_processors)} sites" in repr(session)
        assert (draw().images == plain).all()


def test_the_peak_counts_what_is_held_at_one_time():
    def three_and_one_in_turn():
        for _ in range(3):
            torch.zeros(1000, 1000)
        return torch.zeros(10)

    assert peak_bytes(three_and_one_in_turn)[1] == pytest.approx(4_000_000, rel=0.01)
    result, most = peak_bytes(lambda: torch.ones(1000) + 1)
    assert most == pytest.approx(8_000, rel=0.01)
    assert result.sum() == 2000


def test_columns_of_the_words_take_a_small_share_of_the_whole_map():
    weighed = map_memory(tokens=1024, heads=2, width=8)
    assert weighed["share"] < 0.1
    assert weighed["largest_difference"] < 1e-5
    assert weighed["explicit_bytes"] > 4 * 2 * 1024**2


def test_sides_take_turns_after_a_warm_up():
    order = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert "".join(order) == "ab" + "ba" + "ab"  # the order turns round each time
    assert len(times["a"].wall) == len(times["b"].cpu) == 2


def test_a_ratio_is_the_middle_of_the_rounds():
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == {"median": 2.0, "low": 1.5, "high": 2.5}


def test_the_large_network_has_the_size_of_stable_diffusion():
    with torch.device("meta"):
        unet = stable_diffusion_unet()
    assert parameters_of(unet) == 859_520_964
    assert len(unet.attn_processors) == 32


def test_command_writes_what_it_measured(tmp_path, capsys):
    out = tmp_path / "overhead.json"
    command = ["bench", "overhead", "--size", "small", "--repeats", "1", "--latents", "8"]
    assert main([*command, "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    assert set(record["sides"]) == {"plain", "idle", "heat-maps"}
    assert record["sides"]["plain"]["ratio"]["median"] == 1.0
    assert record["idle"]["rounds"] >= 25
    assert len(record["idle"]["quartiles"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"), [({"size": "sd51"}, "sd15"), ({"latents": 12}, "multiple of 8")]
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        OverheadSettings(**changes)
