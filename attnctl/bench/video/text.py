"""Table, sheet and clip of ``bench video``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.bench.video.measure import VideoBench
from attnctl.bench.video.ways import RATE
from attnctl.cli.tables import print_json, print_table
from attnctl.imaging import save_png
from attnctl.pipelines.video_sheets import shown_frames  # pyright: ignore[reportMissingImports]
from attnctl.sheets import Cell, Row, draw_sheet
from attnctl.video import Video, write_video

SHOWN_CLIPS = 3
"""Clips on the sheet and in the video: the first ones of the list."""

HEAD = (
    "condition", "warping error", "of the first [95%]", "above the autoencoder's",
    "both right", "flicker", "success", "exact",
    "objects kept", "PSNR elsewhere", "seconds",
)  # fmt: skip


def print_videos(done: VideoBench, files: Mapping[str, Path], *, as_json: bool) -> None:
    """Print the table of results, and where everything lies."""
    if as_json:
        print_json({**done.record, "files": {name: str(path) for name, path in files.items()}})
        return
    print_table(HEAD, [_cells(line) for line in done.record["results"]])
    floor = done.record["results"][0]["floor"]
    print(  # noqa: T201
        f"\nThe autoencoder alone gives the right answers a warping error of {floor:.4f}; ratios"
        " are to the first condition, of all clips, of what lies above the autoencoder's own error,"
        " and of the clips that both conditions have right in every frame."
    )
    for name, path in files.items():
        print(f"{name}: {path}")  # noqa: T201


def save_pictures(done: VideoBench, name: str) -> dict[str, Path]:
    """Write a sheet and a clip of the first edits side by side.

    Returns:
        Paths by name: ``sheet``, ``clip`` (MP4) and ``gif``.
    """
    sheet = done.folder / f"{name}.png"
    save_png(draw_videos_sheet(done), sheet)
    clip = Video.of_tensor(side_by_side(done), RATE)
    mp4, _ = write_video(done.folder / f"{name}.mp4", clip)
    gif, _ = write_video(done.folder / f"{name}.gif", clip)
    return {"sheet": sheet, "clip": mp4, "gif": gif}


def draw_videos_sheet(done: VideoBench) -> Image.Image:
    """Frames of the first clips: source, right answer, and every condition."""
    names = [line["condition"] for line in done.record["results"]]
    rows: list[Row] = []
    for case in done.cases[:SHOWN_CLIPS]:
        clips = {"source": case.clip.frames, "right answer": case.answer.frames}
        clips |= {name: done.frames_of(name, case.name) for name in names}
        scores = {e["condition"]: e for e in done.entries if e["id"] == case.name}
        for name, frames in clips.items():
            places = shown_frames(len(frames))
            label = name
            if name in scores:
                label += f": {scores[name]['warping_error']:.4f}"
            cells = [Cell(Image.fromarray(_pixels(frames[t]))) for t in places]
            rows.append(Row(label, cells))
    settings = done.record["settings"]
    title = (
        f"First clips of the list, not picked; {settings['model']}, {settings['steps']} steps,"
        f" guidance {settings['guidance']:g}; number: warping error"
    )
    return draw_sheet(rows, title=title)


def side_by_side(done: VideoBench, enlarged: int = 2, gap_px: int = 4) -> Tensor:
    """The first clips below each other, conditions beside each other, ``(F, 3, H, W)``."""
    names = [line["condition"] for line in done.record["results"]]
    lines: list[Tensor] = []
    for case in done.cases[:SHOWN_CLIPS]:
        clips = [case.clip.frames, *(done.frames_of(name, case.name) for name in names)]
        grown = [c.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3) for c in clips]
        lines.append(torch.cat([_framed(clip, gap_px) for clip in grown], dim=3))
    return torch.cat(lines, dim=2)


def _framed(clip: Tensor, gap_px: int) -> Tensor:
    return torch.nn.functional.pad(clip, (0, gap_px, 0, gap_px), value=1.0)


def _pixels(frame: Tensor) -> Any:
    return np.rint(frame.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def _cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        line["condition"],
        f"{line['warping_error']:.4f}",
        _ratio(line["ratio_of_warping_error"], line["ratio_interval"]),
        _ratio(line["ratio_of_excess"], line["excess_interval"]),
        f"{_ratio(line['ratio_both_right'], line['both_right_interval'])}"
        f" of {line['clips_both_right']}",
        f"{line['flicker']:.4f}",
        f"{100 * line['success']:.1f}%",
        f"{100 * line['exact']:.1f}%",
        f"{100 * line['identity']:.1f}%",
        f"{line['preservation']:.1f} dB",
        f"{line['seconds']:.0f}",
    )


def _ratio(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return "none"
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
