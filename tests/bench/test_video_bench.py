"""The benchmark of edited clips: its measures, its list of clips, and going on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from attnctl.bench.video.cases import CONDITIONS, VideoCase, VideoCondition, make_cases
from attnctl.bench.video.measure import (
    VideoBenchSettings,
    measure,
    split_strip,
    strip,
    summary,
)
from attnctl.bench.video.measures import (
    end_point_error,
    flicker,
    kept_objects,
    preservation,
    score_clip,
    warping_error,
)
from attnctl.bench.video.text import print_videos, save_pictures
from attnctl.errors import SettingError
from attnctl.shapes import model, text, verify
from attnctl.video import read_video

PLAIN = VideoCondition("per-frame")
DENSE = VideoCondition("dense", ({"flatten": {}},))


@pytest.fixture(scope="module")
def case() -> VideoCase:
    """Two objects, eight frames."""
    return make_cases("tests", 2, 8)[1]


@pytest.fixture(scope="module")
def pipe() -> Any:
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    made = model.build_pipeline(
        model.build_vae(),
        model.build_unet(widths=(16, 16, 16), heads=2),
        text.build_text_encoder(tokenizer),
        tokenizer,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_lists_of_clips_are_repeatable_and_have_edits_that_can_be_verified() -> None:
    few, more, others = make_cases("a", 2, 4), make_cases("a", 4, 4), make_cases("b", 2, 4)

    assert all(torch.equal(x.clip.frames, y.clip.frames) for x, y in zip(few, more, strict=False))
    assert not torch.equal(few[0].clip.frames, others[0].clip.frames)
    assert [len(case.clip.caption.objects) for case in more] == [1, 2, 1, 2]
    for case in more:
        assert case.source != case.target
        assert case.new_word not in {kind.colour for kind in case.clip.caption.objects}
        assert verify(case.answer.frames[0], case.target).exact
        assert not verify(case.clip.frames[0], case.target).all_right


def test_the_right_answer_has_full_marks(case: VideoCase) -> None:
    scores = score_clip(case.answer.frames, case.clip, case.answer, case.slot)

    assert (scores.success, scores.exact, scores.identity) == (1.0, 1.0, 1.0)
    assert scores.warping_error < 0.006
    assert scores.flicker < 0.004  # soft edges of what moves reach into pixels that rest
    assert scores.preservation == 100.0


def test_an_edit_that_did_nothing_fails_and_is_steady(case: VideoCase) -> None:
    scores = score_clip(case.clip.frames, case.clip, case.answer, case.slot)

    assert scores.success == 0.0
    assert scores.identity == 0.5
    assert scores.preservation > 30.0


def test_frames_that_flash_have_warping_error_and_flicker(case: VideoCase) -> None:
    frames = case.answer.frames.clone()
    frames[::2] = (frames[::2] + 0.1).clamp(0, 1)

    assert warping_error(frames, case.clip) > warping_error(case.answer.frames, case.clip) + 0.05
    assert flicker(frames, case.clip) == pytest.approx(0.1, abs=0.03)


def test_the_true_motion_is_followed(case: VideoCase) -> None:
    still = case.answer.frames[:1].expand_as(case.answer.frames)

    assert warping_error(still, case.clip) > 1.5 * warping_error(case.answer.frames, case.clip)
    assert end_point_error(case.clip.flow.forward, case.clip) == 0.0
    assert end_point_error(case.clip.flow.forward + 1.0, case.clip) == pytest.approx(2**0.5)


def test_an_object_that_is_lost_once_is_not_kept(case: VideoCase) -> None:
    frames = case.answer.frames.clone()
    frames[3] = case.clip.frames[3]
    verdicts = [verify(frame, case.target) for frame in frames]

    assert kept_objects(verdicts, case.answer.caption) == 0.5
    assert score_clip(frames, case.clip, case.answer, case.slot).success == 7 / 8


def test_changes_beside_the_object_count_against_preservation(case: VideoCase) -> None:
    frames = case.answer.frames.clone()
    frames[:, :, :4] = 1 - frames[:, :, :4]

    assert preservation(frames, case.answer, case.slot) < 30


def test_frames_survive_the_strip() -> None:
    frames = torch.randint(0, 256, (3, 3, 16, 16)) / 255

    assert torch.allclose(split_strip(strip(frames)), frames, atol=1e-6)


def run(pipe: Any, folder: Path, **more: Any) -> Any:
    settings = VideoBenchSettings(model="shapes", count=2, frames=3, split="tests", steps=1)
    return measure(pipe, settings, [PLAIN, DENSE], folder, **more)


def test_a_run_that_was_stopped_goes_on_with_the_same_result(pipe: Any, tmp_path: Path) -> None:
    whole = run(pipe, tmp_path / "whole")
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, tmp_path / "parts", say=stop)
    with pytest.raises(SettingError, match="--resume"):
        run(pipe, tmp_path / "parts")
    told: list[str] = []
    again = run(pipe, tmp_path / "parts", resume=True, say=told.append)

    assert len(told) == 1
    assert again.record["scores"] == whole.record["scores"]


def test_the_result_is_told_and_shown(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(pipe, tmp_path)
    files = {"result": done.save("video"), **save_pictures(done, "video")}
    print_videos(done, files, as_json=False)
    told = capsys.readouterr().out

    assert "per-frame" in told
    assert "1.00 [1.00, 1.00]" in told
    assert len(read_video(files["clip"]).frames) == 3
    assert all(path.exists() for path in files.values())
    assert [line["condition"] for line in done.record["results"]] == ["per-frame", "dense"]


def entry(name: str, error: float, success: float = 1.0) -> dict[str, Any]:
    numbers = ("flicker", "exact", "identity", "preservation", "seconds")
    known = {"condition": name, "warping_error": error, "floor": 0.02, "success": success}
    return {**known, **dict.fromkeys(numbers, 1.0)}


def test_ratios_compare_the_same_clips() -> None:
    entries = [entry("per-frame", e) for e in (0.1, 0.2)] + [entry("dense", e) for e in (0.05, 0.1)]
    first, second = summary(entries, [PLAIN, DENSE])["results"]

    assert first["ratio_of_warping_error"] == 1.0
    assert second["ratio_of_warping_error"] == pytest.approx(0.5)
    assert second["ratio_interval"] == pytest.approx([0.5, 0.5])
    assert second["ratio_of_excess"] == pytest.approx((0.075 - 0.02) / (0.15 - 0.02))
    assert (second["clips_both_right"], second["ratio_both_right"]) == (2, pytest.approx(0.5))


def test_clips_that_one_condition_gets_wrong_do_not_count_among_those_that_are_right() -> None:
    plain = [entry("per-frame", 0.2, 1.0), entry("per-frame", 0.1, 0.0)]
    dense = [entry("dense", 0.1, 1.0), entry("dense", 0.4, 1.0)]
    line = summary([*plain, *dense], [PLAIN, DENSE])["results"][1]

    assert line["ratio_of_warping_error"] == pytest.approx(0.5 / 0.3)
    assert (line["clips_both_right"], line["ratio_both_right"]) == (1, pytest.approx(0.5))
    lost = [entry("dense", 0.1, 0.0), entry("dense", 0.4, 1.0)]
    line = summary([*plain, *lost], [PLAIN, DENSE])["results"][1]
    assert (line["clips_both_right"], line["ratio_both_right"]) == (0, None)


def test_conditions_that_are_compared_differ_in_how_frames_meet() -> None:
    base, *others = CONDITIONS[:4]
    for other in others:
        assert other.techniques[0] == base.techniques[0]
        assert other.inject == base.inject
        assert len(other.techniques) == 2


def test_two_conditions_of_one_name_are_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="one name"):
        measure(pipe, VideoBenchSettings(), [PLAIN, PLAIN], tmp_path)
    with pytest.raises(SettingError, match="--frames"):
        VideoBenchSettings(frames=1)
