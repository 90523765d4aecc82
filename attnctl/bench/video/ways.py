"""How the frames of a condition are made: an edit of the inverted clip, or drawn from its noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.bench.video.cases import VideoCase, VideoCondition
from attnctl.inversion import decode, encode
from attnctl.inversion.driven import Keep, Solver, Solving
from attnctl.inversion.hosts import Call, drive
from attnctl.inversion.levels import Ladder
from attnctl.inversion.solvers import euler_down
from attnctl.pipelines.video_edit import (  # pyright: ignore[reportMissingImports]
    VideoEditSettings,
    edit_video,
    motion_of,
)
from attnctl.recipes import Recipe
from attnctl.technique import Technique
from attnctl.video import Video
from attnctl.video.clip import Frames

RATE = Fraction(8)
"""Frames a second of rendered clips, for the eye alone."""


def make_frames(
    pipe: Any, condition: VideoCondition, case: VideoCase, steps: int, guidance: float
) -> Tensor:
    """Make the frames of one clip in one way, ``(F, 3, H, W)`` in [0, 1].

    Args:
        pipe: A pipeline that draws shapes.
        condition: The way.
        case: The clip and its edit.
        steps: Steps of the sampler, and of an inversion.
        guidance: Guidance scale.
    """
    recipe = Recipe.from_dict(
        {"prompt": case.target, "techniques": condition.entries(case)}, name=""
    )
    techniques = recipe.build_techniques()
    video = Video.of_tensor(case.clip.frames, RATE)
    asked = VideoEditSettings(
        source=case.source,
        target=case.target,
        steps=steps,
        guidance=guidance,
        chunk=len(video.frames),
        flow=condition.flow,
        inject=condition.inject,
    )
    if condition.strength:
        return _drawn(pipe, video.frames, asked, condition.strength, int(case.name), techniques)
    return edit_video(pipe, video, asked, techniques).video.tensor()


def _drawn(
    pipe: Any,
    frames: Frames,
    asked: VideoEditSettings,
    strength: float,
    seed: int,
    techniques: Sequence[Technique],
) -> Tensor:
    """Noise the frames of a clip and draw them anew, each for itself but for the techniques."""
    flow = motion_of(frames, asked.flow)
    moving = [
        replace(cast(Any, one), flow=flow) if any(f.name == "flow" for f in fields(one)) else one
        for one in techniques
    ]
    pictures = [Image.fromarray(frame) for frame in frames]
    size = pictures[0].size
    first = asked.steps - max(1, round(strength * asked.steps))
    call = Call([asked.target] * len(pictures), size, asked.steps, asked.guidance or 0.0)
    made = drive(pipe, _from_one_noise(first, seed), encode(pipe, pictures), call, moving)
    drawn = [decode(pipe, made.latents[i : i + 1], size)[0] for i in range(len(pictures))]
    return _tensor_of(drawn)


def through_autoencoder(pipe: Any, frames: Tensor) -> Tensor:
    """What the model's autoencoder alone makes of frames ``(F, 3, H, W)``."""
    video = Video.of_tensor(frames, RATE)
    height, width = video.size
    latents = encode(pipe, [Image.fromarray(frame) for frame in video.frames])
    return _tensor_of(decode(pipe, latents, (width, height)))


def _tensor_of(pictures: Sequence[Image.Image]) -> Tensor:
    return Video(np.stack([np.asarray(picture) for picture in pictures]), RATE).tensor()


def _from_one_noise(first: int, seed: int) -> Solver:
    """SDEdit from level ``first`` with the same noise for all items."""

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        source = torch.Generator("cpu").manual_seed(seed)
        noise = torch.randn(start[:1].shape, generator=source).to(start).expand_as(start)
        noised = ladder.noised(start, noise, ladder.levels[first])
        return (yield from euler_down(first)(noised, ladder, keep))

    return solve
