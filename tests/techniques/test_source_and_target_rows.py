"""Small techniques of editing: guidance by item, what lies outside a mask, mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnctl
from attnctl import ItemGuidance, RFControl, Technique, TrajectoryReplay
from attnctl.errors import SettingError
from attnctl.techniques.keep_outside import KeepOutside
from tests.support.pipelines import build, generate

PROMPTS = ["a cat", "a frog"]


def test_no_scales_change_nothing() -> None:
    pipe = build("sd1")
    plain = generate(pipe, PROMPTS, guidance_scale=4.0)
    with attnctl.attach(pipe, ItemGuidance()):
        assert torch.equal(generate(pipe, PROMPTS, guidance_scale=4.0), plain)


@pytest.mark.parametrize(("name", "warned"), [("flux_dev", False), ("flux", True), ("sd1", True)])
def test_scales_that_nothing_can_take_are_told_once(name: str, warned: bool) -> None:
    pipe = build(name)
    with attnctl.attach(pipe, ItemGuidance((1.0, 2.0))) as session:
        generate(pipe, PROMPTS, guidance_scale=1.0)
        told = [text for text in session.report().warnings if "no effect" in text]

    assert len(told) == warned


def test_outside_the_mask_the_target_ends_as_the_source() -> None:
    pipe = build("sd1")
    mask = torch.zeros(1, 16, 16)
    mask[..., 8:] = 1
    plain = generate(pipe, PROMPTS)
    with attnctl.attach(pipe, KeepOutside(mask)):
        kept = generate(pipe, PROMPTS)

    assert torch.equal(kept[0], plain[0])
    assert torch.equal(kept[1, ..., :8], kept[0, ..., :8])
    assert not torch.equal(kept[1, ..., 8:], plain[1, ..., 8:])


def test_a_mask_of_ones_changes_nothing() -> None:
    pipe = build("sd1")
    plain = generate(pipe, PROMPTS)
    with attnctl.attach(pipe, KeepOutside(torch.ones(1, 1, 1))):
        assert torch.equal(generate(pipe, PROMPTS), plain)


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        (lambda: ItemGuidance((1.0, -2.0)), "scales=-2.0"),
        (lambda: RFControl(eta=1.5), "eta=1.5"),
        (lambda: RFControl(decay=-1.0), "decay=-1.0"),
        (lambda: TrajectoryReplay(source=-1), "source=-1"),
        (lambda: TrajectoryReplay(match="level"), "match='level'"),
        (lambda: KeepOutside(torch.ones(1), target=0), "both item 0"),
    ],
)
def test_settings_out_of_range_are_refused_at_construction(technique: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        technique()


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        (ItemGuidance((1.0, 2.0, 3.0)), "3 scales for 2 items"),
        (KeepOutside(torch.ones(1), target=2), "target=2, but the run has 2 items"),
        (RFControl(items=(5,)), "items"),
    ],
)
def test_items_that_the_run_does_not_have_are_refused(technique: Technique, said: str) -> None:
    name = "sd3" if isinstance(technique, RFControl) else "sd1"
    pipe, steps = build(name), list[int]()
    if isinstance(technique, RFControl):
        technique = RFControl(torch.zeros(1, 4, 16, 16), items=(5,))
    with attnctl.attach(pipe, technique), pytest.raises(SettingError, match=said):
        generate(
            pipe, PROMPTS, guidance_scale=4.0,
            callback_on_step_end=lambda p, i, t, k: steps.append(i) or k,
        )  # fmt: skip
    assert steps == []
