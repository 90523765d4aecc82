"""Clips from a recipe with any text-to-video pipeline, and their files."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnctl.pipelines.fitting import (  # pyright: ignore[reportMissingImports]
    pipeline_arguments,
    using_scheduler,
)
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    OnStep,
    shared_record,
)
from attnctl.recipes import Recipe

FPS = 8
"""Frames a second where the recipe names none."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip that was made.

    Attributes:
        frames: ``(F, H, W, 3)`` uint8 RGB.
        recipe: The recipe of this clip, every choice filled in.
        record: What belongs into its metadata.
        seconds: Time that it took.
        report: What the techniques did, as plain values; ``None`` without techniques.
    """

    frames: np.ndarray
    recipe: Recipe
    record: dict[str, Any]
    seconds: float
    report: dict[str, Any] | None


def makes_clips(pipe: Any) -> bool:
    """Whether a pipeline makes videos."""
    return "num_frames" in inspect.signature(pipe.__call__).parameters


def draw_clip(
    pipe: Any,
    recipe: Recipe,
    *,
    kernel: str,
    on_step: OnStep,
    on_latents: Callable[[Tensor], None],
) -> Clip:
    """Make one clip.

    Args:
        pipe: A text-to-video pipeline.
        recipe: One prompt, with a seed and every choice filled in.
        kernel: Attention kernel for the techniques.
        on_step: Called after each denoising step with 1.
        on_latents: Called after each denoising step with the latents.
    """

    def after_step(_pipe: Any, _index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if "latents" in values:
            on_latents(values["latents"])
        on_step(1)
        return values

    techniques = recipe.build_techniques()
    arguments = {**pipeline_arguments(pipe, recipe), "prompt": recipe.prompt}
    arguments["generator"] = torch.Generator("cpu").manual_seed(recipe.seed or 0)
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:
        arguments["callback_on_step_end"] = after_step
    started = time.perf_counter()
    with using_scheduler(pipe, recipe.scheduler):
        pictures, report = _call(pipe, arguments, techniques, kernel)
        record = shared_record(pipe, techniques, kernel)
    frames = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    single = recipe.changed(count=1, size=size, frames=len(frames), fps=recipe.fps or FPS)
    named = {"prompt": recipe.prompt, "model": recipe.model, "seed": recipe.seed}
    full = {"recipe": single.to_dict(), **named, **record}
    return Clip(frames, single, full, time.perf_counter() - started, report)


def save_clip(clip: Clip, path: Path) -> Path:
    """Write a clip as MP4 that carries its recipe; the file appears only when it is whole."""
    from attnctl.video import Video, write_video

    rate = Fraction(clip.recipe.fps or FPS).limit_denominator(1001)
    return write_video(path, Video(clip.frames, rate), record=clip.record)[0]


def _call(
    pipe: Any, arguments: dict[str, Any], techniques: list[Any], kernel: str
) -> tuple[Any, dict[str, Any] | None]:
    import attnctl

    if not techniques:
        return pipe(output_type="pil", **arguments).frames[0], None
    with attnctl.attach(pipe, techniques, kernel=kernel) as session:
        frames = pipe(output_type="pil", **arguments).frames[0]
        return frames, session.report().to_dict()
