"""Clips as jobs, and their files."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from attnctl.pipelines.text_to_image import OnStep  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_video import draw_videos  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe
from attnctl.video import Video, write_video


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip that was made.

    Attributes:
        video: The clip.
        recipe: The recipe of this clip.
        record: What belongs into its metadata.
        seconds: Time that it took.
        report: What the techniques did, as plain values; ``None`` without techniques.
    """

    video: Video
    recipe: Recipe
    record: dict[str, Any]
    seconds: float
    report: dict[str, Any] | None


def makes_clips(pipe: Any) -> bool:
    """Whether a pipeline makes videos."""
    return "num_frames" in inspect.signature(pipe.__call__).parameters


def draw_clip(pipe: Any, recipe: Recipe, *, kernel: str, on_step: OnStep) -> Clip:
    """Make one clip.

    Args:
        pipe: A text-to-video pipeline.
        recipe: One prompt, with a seed and every choice filled in.
        kernel: Attention kernel for the techniques.
        on_step: Called after each denoising step with 1.
    """
    started = time.perf_counter()
    rate = None if recipe.fps is None else Fraction(recipe.fps).limit_denominator(1001)
    (made,) = draw_videos(
        pipe, recipe, frames=recipe.frames, rate=rate, kernel=kernel, on_step=on_step
    )
    report = None if made.report is None else made.report.to_dict()
    return Clip(made.video, made.recipe, made.record, time.perf_counter() - started, report)


def save_clip(clip: Clip, path: Path) -> Path:
    """Write a clip as MP4 that carries its recipe; the file appears only when it is whole."""
    return write_video(path, clip.video, record=clip.record)[0]
