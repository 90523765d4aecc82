"""Suite ``long``: the hand-over, what counts in it, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from attnctl.bench.effect.long import (
    JUMP,
    KEPT,
    NOTHING_SHARED,
    RIGHT,
    hand_over,
    make_cases,
    step_of_hand_over,
)
from attnctl.bench.effect.parts import EffectSettings
from attnctl.bench.effect.table import Asked, measure
from attnctl.bench.journal import FILE_NAME
from attnctl.pipelines.tiling import Tiling, plan_long_video

from .effect_pipes import load

SETTINGS = EffectSettings(clips=2, frames=2, steps=2)
ASKED = Asked(("long",), (), ("shapes-motion",))


def test_prompts_are_repeatable_and_every_second_pair_keeps_its_object() -> None:
    few, more = make_cases("tests", 2), make_cases("tests", 4)

    assert more[:2] == few
    assert [case.keeps for case in more] == [False, True, False, True]
    for case in more:
        first, second = case.prompts
        assert (first.objects[0] in second.objects) == case.keeps
        assert len(second.objects) == 1 + case.keeps


def test_the_hand_over_is_what_neither_prompt_has_alone() -> None:
    plan = plan_long_video(load("shapes-motion"), 2, Tiling(4, 1), 8)

    assert plan.latent_frames == 16
    assert hand_over(plan) == (4, 12)


def test_the_step_of_hand_over_is_that_of_the_hand_over_alone() -> None:
    frames = np.zeros((8, 4, 4, 3))
    assert step_of_hand_over(frames, 3, 5) == 0.0
    frames[5:] += 51.0
    assert step_of_hand_over(frames, 3, 5) == 51.0  # into the first frame behind it
    assert step_of_hand_over(frames, 5, 7) == 51.0  # and out of the last one before it
    frames[1:] += 200.0
    assert step_of_hand_over(frames, 3, 5) == 51.0
    smooth = np.linspace(0, 51, 8)[:, None, None, None] + np.zeros((8, 4, 4, 3))
    assert step_of_hand_over(smooth, 3, 5) == pytest.approx(51 / 7)


def test_two_runs_are_equal_and_a_stopped_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    whole = measure(SETTINGS, ASKED, tmp_path / "whole", load)
    with pytest.raises(KeyboardInterrupt):
        measure(SETTINGS, ASKED, tmp_path / "parts", load, say=stop)
    again = measure(SETTINGS, ASKED, tmp_path / "parts", load, resume=True)

    assert again.record == whole.record
    lines = [line for line in whole.lines if line.technique == "ditctrl" and line.count]
    assert {line.baseline_name for line in lines} == {NOTHING_SHARED}
    assert {line.measure for line in lines if line.claimed} <= {JUMP, KEPT}
    assert {line.claimed for line in lines if line.measure == RIGHT} == {False}
    assert len([line for line in lines if line.measure == JUMP]) == 2  # two settings
    [journal] = (tmp_path / "whole").rglob(FILE_NAME)
    records = [json.loads(text) for text in journal.read_text().splitlines()[1:]]
    assert {tuple(one is None for one in record["right"]) for record in records} == {
        (False, True, True, False)
    }
    assert [record["kept"] is None for record in records] == [True] * 3 + [False] * 3
    assert len({record["pixels"] for record in records}) > 2
    [sheet] = whole.sheets.values()
    assert sheet.exists()
    monkeypatch.setattr("attnctl.bench.effect.long._make", None)  # all is read back
    assert measure(SETTINGS, ASKED, tmp_path / "whole", load, resume=True).record == whole.record
