"""Carry out an edit of a clip: load the pipeline, edit chunk by chunk, write, tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnctl.cli.interrupt import Interrupt
from attnctl.cli.progress import Progress
from attnctl.cli.remarks import remark
from attnctl.cli.results import slug
from attnctl.cli.studio import load
from attnctl.cli.video_order import VideoOrder
from attnctl.imaging import run_record, save_png, versions
from attnctl.inversion import sampler_of
from attnctl.pipelines.video_chunks import (  # pyright: ignore[reportMissingImports]
    ChunkStore,
    chunks_of,
)
from attnctl.pipelines.video_edit import (  # pyright: ignore[reportMissingImports]
    VideoEdit,
    check_pipeline,
    edit_video,
    evaluations_of,
    resolve_video,
)
from attnctl.pipelines.video_memory import plan_video  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.video_settings import (  # pyright: ignore[reportMissingImports]
    VideoEditSettings,
)
from attnctl.pipelines.video_sheets import (  # pyright: ignore[reportMissingImports]
    draw_frames,
    draw_motion,
)
from attnctl.technique import Technique
from attnctl.video import write_video


def run_video_order(
    order: VideoOrder, *, plan: bool = False, as_json: bool = False, quiet: bool = False
) -> None:
    """Edit the clip that was ordered, and print where everything is."""
    quiet = quiet or as_json
    remark([f"{order.path}: {note}" for note in order.video.notes], quiet)
    loading: Any = order
    pipe = load(loading)
    check_pipeline(pipe)
    techniques = order.recipe.build_techniques()
    settings = resolve_video(pipe, order.video, order.settings)
    check_techniques(pipe, techniques)
    if plan:
        _tell_plan(plan_video(pipe, order.video, settings, techniques), as_json)
        return
    record = record_of(order, settings, pipe, techniques)
    store = ChunkStore(order.out, {**record, "versions": versions()}, order.video.frames)
    done = _edited(order, settings, pipe, techniques, store, quiet)
    files, notes = save_video_edit(order, done, record, store.key)
    store.clear()
    report = done.report
    if report is not None:
        notes += [f"note: {text}" for text in report.warnings]
    remark(notes, quiet)
    _tell(order, done, files, notes, as_json)


def check_techniques(pipe: Any, techniques: Sequence[Technique]) -> None:
    """Refuse techniques that do not fit the model or each other, before anything runs."""
    import attnctl

    if techniques:
        attnctl.attach(pipe, list(techniques)).detach()


def _edited(
    order: VideoOrder,
    settings: VideoEditSettings,
    pipe: Any,
    techniques: Sequence[Technique],
    store: ChunkStore,
    quiet: bool,
) -> VideoEdit:
    chunks = chunks_of(len(order.video.frames), settings.chunk)
    total = evaluations_of(settings, chunks)
    with Interrupt(quiet=quiet) as interrupt, Progress(total, quiet=quiet) as progress:

        def on_step(frames: int) -> None:
            progress.step(frames)
            interrupt.check()

        def on_chunk(number: int, count: int, was_there: bool) -> None:
            kept = ", found finished" if was_there else ""
            frames = chunks[number].kept
            progress.say(f"chunk {number + 1}/{count}: frames {frames[0]}-{frames[-1]}{kept}")

        return edit_video(
            pipe, order.video, settings, techniques,
            store=store, on_step=on_step, on_chunk=on_chunk,
        )  # fmt: skip


def save_video_edit(
    order: VideoOrder, done: VideoEdit, record: dict[str, Any], key: str
) -> tuple[dict[str, Path], list[str]]:
    """Write clip, sheet and motion; give their files by kind, and what was converted."""
    names = "+".join(entry.name for entry in order.recipe.techniques)
    stem = f"{slug(done.settings.target)}-{names[:60]}-{key[:6]}"
    sound = order.video if order.sound else None
    files: dict[str, Path] = {}
    files["video"], notes = write_video(
        order.out / f"{stem}.mp4", done.video, record=record, audio=sound
    )
    if order.gif:
        files["gif"], more = write_video(order.out / f"{stem}.gif", done.video, record=record)
        notes += more
    small, edited = done.small
    title = f"“{done.settings.target}”, {order.recipe.model}, {names}"
    sheet = draw_frames([("source", small), ("edit", edited)], title=title)
    files["sheet"] = save_png(sheet, order.out / f"{stem}-sheet.png")
    if done.flow is not None:
        motion = draw_motion(small, done.flow)
        files["flow"] = save_png(motion, order.out / f"{stem}-flow.png")
    return files, list(notes)


def record_of(
    order: VideoOrder, settings: VideoEditSettings, pipe: Any, techniques: Sequence[Technique]
) -> dict[str, Any]:
    """Everything that decides about the result, as plain values: no times, no folders."""
    width, height = settings.size or (0, 0)
    recipe = order.recipe.changed(
        steps=settings.steps, guidance=settings.guidance, size=f"{width}x{height}"
    )
    return {
        "recipe": recipe.to_dict(),
        **run_record(pipe, techniques, scheduler=sampler_of(pipe)),
        "video_edit": {
            **settings.to_dict(),
            "file": order.path.name,
            "frames": str(order.frames),
            "count": len(order.video.frames),
            "rate": str(order.video.rate),
            "sound": order.sound and order.video.has_audio,
        },
    }


def _tell(
    order: VideoOrder, done: VideoEdit, files: dict[str, Path], notes: list[str], as_json: bool
) -> None:
    if as_json:
        answer = {
            "recipe": order.recipe.to_dict(),
            "frames": len(done.video.frames),
            "rate": str(done.video.rate),
            "size": list(done.video.size[::-1]),
            "working_size": list(done.settings.size or ()),
            "chunks": done.chunks,
            "resumed": done.resumed,
            **{name: str(path) for name, path in files.items()},
            "notes": [*order.video.notes, *notes],
        }
        print(json.dumps(answer, ensure_ascii=False))  # noqa: T201
        return
    for name, path in files.items():
        print(path if name == "video" else f"{name}: {path}")  # noqa: T201


def _tell_plan(plan: Any, as_json: bool) -> None:
    print(json.dumps(plan.to_dict()) if as_json else plan.text())  # noqa: T201
