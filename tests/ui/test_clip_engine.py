"""Clips in the queue: planned, edited, stopped within a step, and made from words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnctl.cli.studio import silence_loading
from attnctl.errors import SettingError
from attnctl.recipes import Recipe
from attnctl.ui import Limits, StudioSettings
from attnctl.ui.clip_edits import ClipWish, MadeClip
from attnctl.ui.clip_form import ClipOptions, clip_wish, words_wish
from attnctl.ui.drawing import Order
from attnctl.ui.studio import Studio
from attnctl.ui.tabs.clip_view import facts_html, plan_html
from attnctl.ui.visit import MOST_FILES, Visit
from attnctl.video import read_video, read_video_record
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build
from tests.ui.clip_files import SOURCE, TARGET, make_clip
from tests.ui.jobs import end_of, first_step_of

STACK = [{"flatten": {"carry": True}}, "word-swap"]


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny AnimateDiff pipeline with random weights, in a folder."""
    folder = tmp_path_factory.mktemp("models") / "moving"
    build("animatediff").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def studio(moving: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    silence_loading()
    folder = tmp_path_factory.mktemp("studio")
    settings = StudioSettings(models=("shapes", moving), out=folder / "out")
    opened = Studio.open(settings, folder / "handed")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "my clip.mp4", count=4)


def recipe(**fields: Any) -> Recipe:
    return Recipe.from_dict({"prompt": TARGET, "steps": 2, "techniques": STACK, **fields})


def wish(
    studio: Studio,
    clip: Path,
    *,
    only_plan: bool = False,
    limits: Limits | None = None,
    **fields: Any,
) -> ClipWish:
    options = {
        key: fields.pop(key) for key in ("frames", "chunk", "inject", "flow") if key in fields
    }
    made = clip_wish(
        studio, clip, SOURCE, recipe(**fields), ClipOptions.read(options), only_plan=only_plan
    )
    return replace(made, limits=limits or made.limits)


def test_a_clip_is_edited_and_told_step_by_step(studio: Studio, clip: Path) -> None:
    job = studio.engine.submit(wish(studio, clip, chunk=2))
    told, seen, snapshot = {}, 0, job.snapshot
    while not snapshot.is_ended:
        seen, snapshot = job.wait(seen, 60)
        told[snapshot.making] = snapshot.preview
    made = snapshot.result

    assert (snapshot.state, snapshot.done, snapshot.total) == ("done", 8, 8)
    assert "inverting frames 0 to 1, chunk 1 of 2" in told
    assert "editing frames 2 to 3, chunk 2 of 2" in told
    assert isinstance(made, MadeClip)
    assert set(made.files) == {"video", "sheet", "flow", "source"}
    assert len(read_video(made.files["video"]).frames) == 4
    assert len(read_video(made.files["source"]).frames) == 4
    record = read_video_record(made.files["video"])
    assert (record["recipe"]["prompt"], record["video_edit"]["source"]) == (TARGET, SOURCE)
    assert "flatten" in made.summary
    assert made.command.startswith("attnctl video-edit 'my clip.mp4' --source 'a red square'")
    assert "-t flatten:carry=true -t word-swap" in made.command
    assert not list(studio.settings.out.glob(".video-edit-*"))


def test_a_plan_is_made_without_the_work(studio: Studio, clip: Path) -> None:
    ended = end_of(studio.engine.submit(wish(studio, clip, only_plan=True, steps=200, chunk=3)))
    plan = ended.result
    assert (ended.state, plan.frames, plan.chunks, plan.size) == ("done", 4, 2, (64, 64))
    page = plan_html(plan)
    assert "4, edited at 64\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}64" in page
    assert "MiB taken over from the clip" in page


def test_a_stopped_edit_frees_the_queue_within_one_step_and_goes_on_later(
    studio: Studio, clip: Path
) -> None:
    long = studio.engine.submit(wish(studio, clip, steps=20, chunk=2, inject=0.0))
    short = studio.engine.submit(Order(Recipe(prompt="a red circle", seed=1, steps=1)))
    first_step_of(long)
    seen, snapshot = 0, long.snapshot
    while "chunk 2" not in snapshot.making:
        seen, snapshot = long.wait(seen, 60)
    studio.engine.stop(long)
    done = long.snapshot.done
    stopped = end_of(long)
    assert (stopped.state, stopped.result) == ("stopped", None)
    assert stopped.done <= done + 1
    assert end_of(short).state == "done"
    again = end_of(studio.engine.submit(wish(studio, clip, steps=20, chunk=2, inject=0.0)))
    assert "1 of 2 chunks were finished before" in again.result.facts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a blue and green square"}, "write prompts of the same length"),
        ({"size": "65x64"}, "multiples of 8"),
        ({"techniques": [{"flatten": {"resolutions": [7]}}]}, "flatten"),
        ({"techniques": ["flatten", "token-flow"]}, "token-flow"),
    ],
)
def test_a_mistake_is_told_in_words(
    fields: dict[str, Any], message: str, studio: Studio, clip: Path
) -> None:
    ended = end_of(studio.engine.submit(wish(studio, clip, **fields)))
    assert ended.state == "failed"
    assert message in ended.error
    assert "internal error" not in ended.error
    assert str(clip.parent) not in ended.error


def test_what_is_kept_of_the_clip_is_bounded(studio: Studio, clip: Path) -> None:
    small = Limits(feature_bytes=2**10)
    ended = end_of(studio.engine.submit(wish(studio, clip, limits=small)))
    assert "take fewer frames together, fewer steps" in ended.error
    free = end_of(studio.engine.submit(wish(studio, clip, limits=small, inject=0.0)))
    assert free.state == "done"


def test_a_clip_that_changes_after_the_look_is_still_bounded(studio: Studio, clip: Path) -> None:
    ended = end_of(studio.engine.submit(wish(studio, clip, limits=Limits(frames=3))))
    assert "4 frames; at most 3 are edited in one run" in ended.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 33}, "chunk 33 is above the limit of 32"),
        ({"frames": "9-12"}, "no frame in the range 9-12; it has 4"),
        ({"frames": "x"}, "write 10-50"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_queue(
    changes: dict[str, Any], message: str, studio: Studio, clip: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        wish(studio, clip, **changes)


def test_edits_stops_and_mistakes_leave_no_trace_on_the_pipeline(
    studio: Studio, clip: Path
) -> None:
    assert end_of(studio.engine.submit(wish(studio, clip))).state == "done"
    pipe, _ = studio.engine._pipelines["shapes"]
    before = fingerprint(pipe)
    kinds: list[tuple[dict[str, Any], str]] = [
        ({"techniques": ["token-flow", "pag"]}, "done"),
        ({"techniques": ["cross-frame-attention"], "flow": "none"}, "done"),
        ({"steps": 100}, "stopped"),
        ({"prompt": "a square"}, "failed"),
        ({"only_plan": True}, "done"),
    ]
    for fields, expected in kinds:
        job = studio.engine.submit(wish(studio, clip, **fields))
        if expected == "stopped":
            first_step_of(job)
            studio.engine.stop(job)
        ended = end_of(job)
        assert ended.state == expected, (fields, ended.error)
    assert differences(before, fingerprint(pipe)) == []


def test_a_clip_is_made_from_words(studio: Studio, moving: str) -> None:
    asked = recipe(model=moving, seed=3, frames=2, size="32x32", techniques=["flatten"])
    ended = end_of(studio.engine.submit(words_wish(studio, asked)))
    assert (ended.state, ended.error, ended.done, ended.total) == ("done", "", 2, 2)
    assert set(ended.result.files) == {"video", "sheet"}
    assert len(read_video(ended.result.files["video"]).frames) == 2
    assert "--frames 2 -t flatten" in ended.result.command


def test_each_kind_of_model_is_sent_to_where_it_works(
    studio: Studio, moving: str, clip: Path
) -> None:
    wrong = [
        (wish(studio, clip, model=moving), "makes videos itself"),
        (words_wish(studio, recipe(seed=1)), "makes pictures, not videos"),
        (Order(recipe(model=moving, seed=1)), "use it in the tab “Video”"),
    ]
    for work, message in wrong:
        ended = end_of(studio.engine.submit(work))
        assert (ended.state, message in ended.error) == ("failed", True), ended.error
    with pytest.raises(SettingError, match="at most 240 are made"):
        words_wish(studio, recipe(frames=241))


def test_texts_of_a_clip_are_escaped_and_its_copies_forgotten(tmp_path: Path) -> None:
    page = facts_html(MadeClip({}, ("<b>one</b>", "<i>two</i>"), "<u>", "attnctl '<script>'"))
    assert all(tag not in page for tag in ("<b>one", "<i>", "<u>", "<script>"))
    visit = Visit()
    files = [tmp_path / str(number) for number in range(MOST_FILES + 2)]
    for file in files:
        file.touch()
        visit.hold([file])
    assert [file.exists() for file in files] == [False] * 2 + [True] * MOST_FILES
