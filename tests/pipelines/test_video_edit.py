"""Editing clips with a picture model: chunks, motion, features, going on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attnctl
from attnctl import CrossFrameAttention, Flatten
from attnctl.errors import (
    FlowError,
    SettingError,
    UnsupportedModelError,
    VideoError,
)
from attnctl.flow import ClipFlow, save_flow
from attnctl.pipelines.video_chunks import ChunkStore, chunks_of, flow_of_chunk
from attnctl.pipelines.video_edit import (
    VideoEdit,
    VideoEditSettings,
    edit_video,
    evaluations_of,
    motion_of,
    resolve_video,
    working_size,
)
from attnctl.pipelines.video_memory import plan_video
from attnctl.pipelines.video_recorders import takes_features
from attnctl.pipelines.video_sheets import draw_frames, draw_motion, shown_frames
from attnctl.video import Video
from tests.support.fingerprint import fingerprint
from tests.support.pipelines import build
from tests.support.pipelines.parts import PIXELS

SIZE = (PIXELS, PIXELS)


def clip_of(frames: int = 5, size: tuple[int, int] = SIZE) -> Video:
    """A soft square that moves by one pixel a frame."""
    height, width = size
    values = torch.full((frames, 3, height, width), 0.3)
    for t in range(frames):
        values[t, 0, height // 4 : height // 2, t + 2 : t + 2 + width // 4] = 0.9
    return Video.of_tensor(values, Fraction(8))


def settings_of(**changes: Any) -> VideoEditSettings:
    given = {"steps": 2, "guidance": 3.0, "flow": "none", "inject": 0.0, "size": SIZE}
    return VideoEditSettings("a cat", "a dog", **(given | changes))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build("sd1")


def test_a_clip_comes_out_with_its_size_rate_and_length(pipe: Any) -> None:
    video = clip_of(3, (PIXELS + 5, PIXELS + 13))
    made = edit_video(pipe, video, settings_of())

    assert made.video.frames.shape == video.frames.shape
    assert made.video.rate == video.rate
    assert made.small[1].shape == (3, *SIZE, 3)
    assert not np.array_equal(made.small[0], made.small[1])


def test_the_pipeline_is_left_as_it_was(pipe: Any) -> None:
    before = fingerprint(pipe)
    edit_video(pipe, clip_of(3), settings_of(inject=1.0, flow="dis"), [Flatten()])

    assert fingerprint(pipe) == before


def test_without_techniques_each_frame_is_edited_alone(pipe: Any) -> None:
    video = clip_of(4)
    together = edit_video(pipe, video, settings_of()).small[1]
    for t in (0, 3):
        single = edit_video(pipe, replace(video, frames=video.frames[t : t + 1]), settings_of())
        assert np.abs(single.small[1][0].astype(int) - together[t]).max() <= 1


def test_frames_meet_when_a_technique_lets_them(pipe: Any) -> None:
    video = clip_of(4)
    alone = edit_video(pipe, video, settings_of()).small[1]
    for technique in (CrossFrameAttention(), Flatten()):
        assert not np.array_equal(
            edit_video(pipe, video, settings_of(), [technique]).small[1], alone
        )


def test_the_motion_of_the_clip_reaches_the_technique(pipe: Any) -> None:
    video = clip_of(4)
    still = edit_video(pipe, video, settings_of(), [Flatten()]).small[1]
    moving = edit_video(pipe, video, settings_of(flow="dis"), [Flatten(carry=True)])
    given = motion_of(video.frames, "dis")
    own = edit_video(pipe, video, settings_of(), [Flatten(given, carry=True)])

    assert moving.flow is not None
    assert not np.array_equal(moving.small[1], still)
    assert np.array_equal(moving.small[1], own.small[1])


def test_features_of_the_inversion_are_taken_over(pipe: Any) -> None:
    video = clip_of(3)
    settings = settings_of(steps=4)
    plain, injected = (
        edit_video(pipe, video, replace(settings, inject=share), [Flatten()]).small[1]
        for share in (0.0, 1.0)
    )

    assert takes_features(replace(settings, inject=1.0), [Flatten()])
    assert not takes_features(settings, [Flatten()])
    assert not takes_features(replace(settings, inject=1.0), [CrossFrameAttention()])
    assert not np.array_equal(plain, injected)


def test_an_inject_until_of_its_own_is_kept(pipe: Any) -> None:
    video, settings = clip_of(3), settings_of(steps=4, inject=0.25)
    common, own, longer = (
        edit_video(pipe, video, chosen, [technique]).small[1]
        for chosen, technique in (
            (settings, Flatten()),
            (settings, Flatten(inject_until=1.0)),
            (replace(settings, inject=1.0), Flatten()),
        )
    )

    assert np.array_equal(own, longer)
    assert not np.array_equal(own, common)


@pytest.mark.parametrize(("frames", "size"), [(1, 4), (4, 4), (5, 4), (9, 4), (16, 5), (3, 1)])
def test_chunks_hold_every_frame_once_and_are_bounded(frames: int, size: int) -> None:
    chunks = chunks_of(frames, size)

    assert [t for chunk in chunks for t in chunk.kept] == list(range(frames))
    assert all(len(chunk.kept) <= size for chunk in chunks)
    assert all(len(chunk.frames) <= size + 2 for chunk in chunks)
    for chunk in chunks[1:]:
        assert chunk.frames[: chunk.context] == tuple(sorted({0, chunk.kept[0] - 1}))
    sizes = [len(chunk.kept) for chunk in chunks]
    assert max(sizes) - min(sizes) <= 1


def test_the_gap_before_a_chunk_is_a_cut_in_its_motion() -> None:
    flow = ClipFlow(torch.ones(8, 2, 4, 4), -torch.ones(8, 2, 4, 4), cuts=(7,))
    first, second, third = (flow_of_chunk(flow, chunk) for chunk in chunks_of(9, 3))

    assert (first.frames, first.cuts) == (3, ())
    assert (second.frames, second.cuts) == (5, (0,))
    assert (third.frames, third.cuts) == (5, (0, 3))
    assert torch.equal(second.forward[1:], torch.ones(3, 2, 4, 4))


class StoppedError(Exception):
    pass


def stopping_after(steps: int) -> Callable[[int], None]:
    done = [0]

    def on_step(frames: int) -> None:
        done[0] += frames
        if done[0] > steps:
            raise StoppedError

    return on_step


def run(pipe: Any, out: Path, video: Video, **more: Any) -> VideoEdit:
    settings = settings_of(chunk=2, flow="dis")
    store = ChunkStore(out, settings.to_dict(), video.frames)
    return edit_video(pipe, video, settings, [Flatten(carry=True)], store=store, **more)


def test_a_run_that_was_stopped_goes_on_at_the_next_chunk_with_the_same_result(
    pipe: Any, tmp_path: Path
) -> None:
    video = clip_of(5)
    whole = run(pipe, tmp_path / "whole", video)
    # Chunks of 2, 2 and 1 frames with 0, 2 and 2 frames of context: 8 of 44 evaluations a chunk.
    with pytest.raises(StoppedError):
        run(pipe, tmp_path / "parts", video, on_step=stopping_after(12))
    made = [file.name for file in sorted(tmp_path.glob("parts/.video-edit-*/*.npz"))]
    seen: list[tuple[int, int, bool]] = []
    again = run(pipe, tmp_path / "parts", video, on_chunk=lambda *told: seen.append(told))

    assert made == ["chunk-0000.npz"]
    assert again.resumed == 1
    assert seen == [(0, 3, True), (1, 3, False), (2, 3, False)]
    assert np.array_equal(again.video.frames, whole.video.frames)


def test_chunks_of_another_order_or_clip_are_not_taken(tmp_path: Path) -> None:
    video, settings = clip_of(3), settings_of().to_dict()
    one = ChunkStore(tmp_path, settings, video.frames)
    chunk = chunks_of(3, 3)[0]
    one.save(chunk, video.frames)

    assert np.array_equal(one.load(chunk), video.frames)  # type: ignore[arg-type]
    assert ChunkStore(tmp_path, settings | {"steps": 3}, video.frames).load(chunk) is None
    assert ChunkStore(tmp_path, settings, video.frames[::-1]).load(chunk) is None
    next(one.folder.glob("*.npz")).write_bytes(b"half")
    with pytest.raises(VideoError, match="delete it"):
        one.load(chunk)
    one.clear()
    assert list(tmp_path.iterdir()) == []


def test_steps_are_counted_in_frames(pipe: Any) -> None:
    told: list[int] = []
    settings = settings_of(chunk=2)
    edit_video(pipe, clip_of(3), settings, on_step=told.append)

    assert sum(told) == evaluations_of(settings, chunks_of(3, 2))


@pytest.mark.parametrize("frames", [1, 4])
def test_single_frames_and_clips_that_rest_are_edited(pipe: Any, frames: int) -> None:
    still = clip_of(1)
    video = replace(still, frames=still.frames.repeat(frames, 0))
    made = edit_video(pipe, video, settings_of(flow="dis"), [Flatten()])

    assert len(made.video.frames) == frames
    assert np.array_equal(made.small[1][0], made.small[1][-1])


def test_a_scene_cut_separates_trajectories(pipe: Any) -> None:
    video = clip_of(4)
    frames = video.frames.copy()
    frames[2:] = 255 - frames[2:]
    made = edit_video(pipe, replace(video, frames=frames), settings_of(flow="dis"), [Flatten()])

    assert made.flow is not None
    assert made.flow.cuts == (1,)


def test_flow_of_another_clip_is_refused_before_anything_runs(pipe: Any, tmp_path: Path) -> None:
    file = save_flow(ClipFlow(torch.zeros(6, 2, 8, 8)), tmp_path / "flow.npz")
    told: list[int] = []
    with pytest.raises(FlowError, match="7 frames, the clip has 3"):
        edit_video(pipe, clip_of(3), settings_of(flow=str(file)), [Flatten()], on_step=told.append)
    assert told == []


def test_a_precomputed_flow_gives_what_estimating_gives(pipe: Any, tmp_path: Path) -> None:
    video = clip_of(3)
    flow = motion_of(video.frames, "dis")
    assert flow is not None
    file = save_flow(flow, tmp_path / "flow.npz")
    both = [
        edit_video(pipe, video, settings_of(flow=name), [Flatten(carry=True)]).small[1]
        for name in ("dis", str(file))
    ]

    assert np.array_equal(*both)


@pytest.mark.parametrize("name", ["animatediff", "wan", "cogvideox"])
def test_models_that_make_videos_are_refused_with_the_other_command(name: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"picture model|cannot invert|no text-to-image"
    ):
        edit_video(build(name), clip_of(2), settings_of())


def test_settings_that_cannot_be_used_are_refused() -> None:
    cases: dict[str, dict[str, Any]] = {
        "steps": {"steps": 0},
        "chunk": {"chunk": True},
        "inject": {"inject": 1.5},
        "guidance": {"guidance": float("nan")},
        "provider": {"flow": "diss"},
        "no flow file": {"flow": "missing.npz"},
    }
    for message, changes in cases.items():
        with pytest.raises(SettingError, match=message):
            settings_of(**changes)
    with pytest.raises(SettingError, match="target prompt is empty"):
        VideoEditSettings("a cat", " ")


def test_the_working_size_keeps_the_form_and_fits_the_model() -> None:
    pipe = attnctl.load_pipeline("shapes")

    assert working_size(pipe, 64, 64) == (64, 64)
    wide, high = working_size(pipe, 1920, 1080)
    assert wide % 8 == high % 8 == 0
    assert wide / high == pytest.approx(16 / 9, rel=0.1)
    assert wide * high <= 1.2 * 64 * 64
    assert resolve_video(pipe, clip_of(), settings_of(guidance=None, size=None)).guidance == 5.0


def test_the_plan_grows_with_the_chunk_and_not_with_the_clip(pipe: Any) -> None:
    def plan(frames: int, chunk: int, inject: float = 0.0) -> Any:
        settings = resolve_video(pipe, clip_of(frames), settings_of(chunk=chunk, inject=inject))
        return plan_video(pipe, clip_of(frames), settings, [Flatten()])

    short, long, wide = plan(8, 8), plan(40, 6), plan(40, 20)
    assert long.memory.device == short.memory.device  # six frames and two of context
    assert wide.memory.device > long.memory.device
    assert (long.largest, long.chunks) == (8, 7)
    assert plan(8, 8, 0.5).memory.features > 0
    assert "7 chunk(s)" in long.text()
    assert long.to_dict()["device_bytes"] == long.memory.device


def test_sheets_show_frames_spread_over_the_clip() -> None:
    video = clip_of(20)
    flow = motion_of(video.frames, "dis")

    assert shown_frames(20) == [0, 3, 5, 8, 11, 14, 16, 19]
    assert shown_frames(1) == [0]
    assert flow is not None
    sheet = draw_frames([("source", video.frames), ("edit", video.frames)], title="both")
    assert sheet.width > sheet.height > 2 * PIXELS
    assert draw_motion(video.frames, flow).width > 0
    assert draw_motion(video.frames[:1], ClipFlow(torch.zeros(0, 2, 8, 8))).width > 0
