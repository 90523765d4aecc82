"""Suite ``clips``: edits to another shape, and frames drawn from their noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnctl.bench.effect.clips import DRAWN, FLO_AT, KEPT, REAL_CRAFT, RIGHT, SUCCESS, WARPING
from attnctl.bench.effect.parts import EffectSettings
from attnctl.bench.effect.table import Asked, measure
from attnctl.bench.video.cases import CONDITIONS, VideoCase, VideoCondition, make_cases
from attnctl.bench.video.measures import preservation, score_clip
from attnctl.bench.video.ways import make_frames
from attnctl.shapes import verify

from .effect_pipes import load

SETTINGS = EffectSettings(clips=2, frames=3, steps=2)


@pytest.fixture(scope="module")
def case() -> VideoCase:
    """Two objects, four frames, another shape."""
    return make_cases("tests", 2, 4, "shape")[1]


def test_shapes_are_exchanged_in_the_clips_whose_colours_are() -> None:
    shapes, colours = make_cases("tests", 4, 3, "shape"), make_cases("tests", 4, 3)

    for one, other in zip(shapes, colours, strict=True):
        assert torch.equal(one.clip.frames, other.clip.frames)
        assert one.new_word not in {kind.shape for kind in one.clip.caption.objects}
        assert len(one.source.split()) == len(one.target.split())
        assert one.new_word in one.target.split()
        assert verify(one.answer.frames[0], one.target).exact
        assert not verify(one.clip.frames[0], one.target).all_right


def test_the_right_answer_in_another_shape_has_full_marks(case: VideoCase) -> None:
    scores = score_clip(case.answer.frames, case.clip, case.answer, case.slot)

    assert (scores.success, scores.exact, scores.identity) == (1.0, 1.0, 1.0)
    assert scores.warping_error < 0.006
    assert scores.preservation == 100.0
    assert score_clip(case.clip.frames, case.clip, case.answer, case.slot).success == 0.0


def test_the_object_before_the_edit_does_not_count_as_elsewhere(case: VideoCase) -> None:
    frames = case.answer.frames.clone()
    before = (case.clip.objects == case.slot) & (case.answer.objects != case.slot)
    frames.permute(1, 0, 2, 3)[:, before] = 0.0

    assert preservation(frames, case.answer, case.slot, case.clip) == 100.0


def test_the_new_word_is_filled_in_where_a_technique_takes_words(case: VideoCase) -> None:
    assert REAL_CRAFT.entries(case) == [{"real-craft": {"words": [case.new_word]}}]
    given = VideoCondition("given", ({"real-craft": {"words": ["red"]}},))
    assert given.entries(case) == [{"real-craft": {"words": ["red"]}}]
    assert CONDITIONS[0].entries(case) == [{"word-swap": {}}]


def test_plain_values_of_older_conditions_stay() -> None:
    assert set(CONDITIONS[0].to_plain()) == {"name", "techniques", "flow", "inject"}
    assert DRAWN.to_plain()["strength"] == FLO_AT.to_plain()["strength"] > 0


def test_frames_that_are_drawn_share_their_noise_and_follow_the_flow() -> None:
    case = make_cases("tests", 1, 3, "none")[0]
    assert case.source == case.target
    still = VideoCase(case.name, _still(case), case.slot, case.new_word, case.edit)
    pipe = load("shapes")
    drawn = make_frames(pipe, DRAWN, still, 4, 5.0)
    moving = make_frames(pipe, DRAWN, case, 4, 5.0)
    followed = make_frames(pipe, FLO_AT, case, 4, 5.0)

    assert (drawn[0] - drawn[1]).abs().max() < 0.02  # one frame, one noise
    assert torch.equal(moving, make_frames(pipe, DRAWN, case, 4, 5.0))
    assert not torch.equal(moving[1:], followed[1:])


def _still(case: VideoCase):
    from attnctl.shapes.clips import make_clip

    first = case.clip.scenes.select(torch.zeros(3, dtype=torch.long))
    return make_clip(first, case.clip.settings)


def test_each_kind_of_clip_has_a_run_and_lines_of_its_own(tmp_path: Path) -> None:
    asked = Asked(("clips",), ("real-craft", "flo-at"), ("shapes",))
    done = measure(SETTINGS, asked, tmp_path / "one", load)
    lines = [line for line in done.lines if line.suite == "clips"]

    assert {(x.technique, x.baseline_name, x.measure) for x in lines if x.claimed} == {
        ("real-craft", "per-frame", SUCCESS),
        ("real-craft", "per-frame, no word-swap", KEPT),
        ("flo-at", DRAWN.name, WARPING),
    }
    assert {line.count for line in lines} == {2}
    assert {x.measure for x in lines if x.technique == "flo-at"} == {WARPING, RIGHT}
    assert {"strength 0.6" in x.setting for x in lines if x.technique == "flo-at"} == {True}
    assert len(done.sheets) == 2
    again = measure(SETTINGS, asked, tmp_path / "two", load)
    assert again.record == done.record
    assert measure(SETTINGS, asked, tmp_path / "two", load, resume=True).record == done.record
