"""Attend-and-Excite beside the pipeline in diffusers: equal latents, counted work."""

import pytest
import torch

from attnctl.bench import port
from attnctl.bench.port import PortSettings, RunSettings, counted, our_run, port_run
from attnctl.cli import main
from attnctl.errors import SettingError

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

PLAIN_UPDATES = RunSettings(steps=3, altered=2, images=1, scale_factor=20.0, thresholds={})
TWO_IMAGES = RunSettings(steps=3, altered=1, images=2, scale_factor=20.0, thresholds={})
REFINED = RunSettings(steps=3, altered=1, images=1, scale_factor=20.0, thresholds={1: 0.05})


def both(pipe, run):
    latents, work = [], []
    for side in (port_run(pipe, run), our_run(pipe, run)):
        with counted(pipe.unet) as counts:
            latents.append(side())
        work.append(counts)
    return latents, work


LARGER = RunSettings(steps=2, altered=1, images=1, scale_factor=20.0, thresholds={}, latents=32)


@pytest.mark.parametrize("run", [PLAIN_UPDATES, TWO_IMAGES, REFINED, LARGER])
def test_latents_are_those_of_the_pipeline_in_diffusers(tiny, run):
    (theirs, ours), _ = both(tiny, run)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert ours.shape[-1] == (run.latents or 16)


def test_the_tiny_network_refines_as_long_as_may_be():
    settings = PortSettings("tiny", steps=2)
    pipe = port.build("tiny")
    with counted(pipe.unet) as work:
        our_run(pipe, settings.run_on("tiny"))()
    assert (work.plain, work.gradient, work.backward) == (2, 21, 21)


def test_work_is_counted_on_both_sides(tiny):
    _, (theirs, ours) = both(tiny, PLAIN_UPDATES)
    assert (theirs.plain, theirs.gradient, theirs.gradient_whole, theirs.backward) == (3, 3, 3, 2)
    assert (ours.plain, ours.gradient, ours.gradient_whole, ours.backward) == (3, 2, 0, 2)


def test_pictures_of_a_run_share_their_gradient_pass(tiny):
    _, (theirs, ours) = both(tiny, TWO_IMAGES)
    assert (theirs.gradient, theirs.backward) == (6, 2)
    assert (ours.gradient, ours.backward) == (1, 1)


def test_counting_leaves_no_hook_behind(tiny):
    with counted(tiny.unet):
        pass
    assert not tiny.unet.conv_in._forward_pre_hooks
    assert not tiny.unet.conv_out._forward_pre_hooks


def test_the_record_has_times_work_and_differences(tiny, monkeypatch, capsys):
    monkeypatch.setattr(port, "build", lambda network: tiny)
    command = ["bench", "attend-and-excite", "--network", "shapes", "--repeats", "1"]
    assert main([*command, "--steps", "2"]) == 0
    assert "times as fast" in capsys.readouterr().out
    record = port.measure(PortSettings("shapes", repeats=2, steps=2))
    [one] = record["networks"]
    assert one["is_equal"]
    assert one["run"]["altered"] == 1
    assert all(len(one[side]["rounds"]["wall"]) == 2 for side in ("port", "ours", "plain"))
    assert one["speedup"]["low"] <= one["speedup"]["median"] <= one["speedup"]["high"]


def test_an_unknown_network_is_refused():
    with pytest.raises(SettingError, match="'shapes'"):
        PortSettings("shape")
