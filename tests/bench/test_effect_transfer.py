"""Suite ``transfer``: paths of objects, given clips, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attnctl.bench.effect.clip_paths import missed_px, path_of_colour, path_of_object, steps_apart
from attnctl.bench.effect.parts import EffectSettings
from attnctl.bench.effect.table import Asked, measure
from attnctl.bench.effect.transfer import DISTANCE, TransferCase, make_cases
from attnctl.bench.journal import FILE_NAME

from .effect_pipes import load

SETTINGS = EffectSettings(clips=2, frames=4, steps=2)
ASKED = Asked(("transfer",), (), ("shapes-motion",))


@pytest.fixture(scope="module")
def case() -> TransferCase:
    return make_cases("tests", 1, 6)[0]


def frames_of(case: TransferCase) -> Any:
    return case.clip.frames.permute(0, 2, 3, 1).numpy()


def test_given_clips_are_repeatable_and_show_another_object_than_the_prompt() -> None:
    few, more = make_cases("tests", 2, 3), make_cases("tests", 6, 3)

    assert torch.equal(few[1].clip.frames, more[1].clip.frames)
    assert len({str(case.prompt.seed) for case in more}) == 6
    for case in more:
        assert len(case.clip.caption.objects) == 1
        assert case.given.colour != case.subject.colour
        assert case.given.shape != case.subject.shape


def test_the_path_that_is_seen_is_the_rendered_one(case: TransferCase) -> None:
    true = path_of_object(case.clip.objects, 0)
    apart = steps_apart(path_of_colour(frames_of(case), case.given.colour), true)

    assert max(px for px in apart if px is not None) <= 0.75
    assert None not in apart
    assert steps_apart(true, true) == [0.0] * 6


def test_a_clip_that_is_shifted_is_as_far_from_itself_as_the_shift(case: TransferCase) -> None:
    shifted = torch.zeros_like(case.clip.objects) - 1
    shifted[:, :, 3:] = case.clip.objects[:, :, :-3]
    apart = steps_apart(path_of_object(shifted, 0), path_of_object(case.clip.objects, 0))
    whole = [px for px in apart if px == 3.0]

    assert len(whole) >= 4  # a frame at the border loses a part of the object


def test_a_frame_without_the_object_is_told_from_one_that_is_near(case: TransferCase) -> None:
    frames = frames_of(case).copy()
    frames[2] = 0.5
    apart = steps_apart(
        path_of_colour(frames, case.given.colour), path_of_object(case.clip.objects, 0)
    )

    assert [px is None for px in apart] == [False, False, True, False, False, False]
    assert missed_px((64, 64)) == pytest.approx(45.25, abs=0.01)
    assert path_of_object(case.clip.objects, 1) == [None] * 6


def test_two_runs_are_equal_and_a_stopped_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    whole = measure(SETTINGS, ASKED, tmp_path / "whole", load)
    with pytest.raises(KeyboardInterrupt):
        measure(SETTINGS, ASKED, tmp_path / "parts", load, say=stop)
    [journal] = (tmp_path / "parts").rglob(FILE_NAME)
    assert journal.read_bytes().count(b"\n") == 3
    again = measure(SETTINGS, ASKED, tmp_path / "parts", load, resume=True)

    assert again.record == whole.record
    lines = [line for line in whole.lines if line.technique == "motion-flow" and line.count]
    assert [line.measure for line in lines if line.claimed] == [DISTANCE]
    assert {line.count for line in lines if line.claimed} == {2}
    assert "half the picture's diagonal" in lines[0].note
    [journal] = (tmp_path / "whole").rglob(FILE_NAME)
    records = [json.loads(text) for text in journal.read_text().splitlines()[1:]]
    assert len({record["pixels"] for record in records}) == 4  # the technique changes both clips
    assert {len(record["apart"]) for record in records} == {4}
    [sheet] = whole.sheets.values()
    assert sheet.exists()
    monkeypatch.setattr("attnctl.bench.effect.transfer._make", None)  # all is read back
    assert measure(SETTINGS, ASKED, tmp_path / "whole", load, resume=True).record == whole.record
