"""Clips in tiny pipelines: runs, recordings of attention, and flow attention written out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Technique
from attnctl.flow import ClipFlow, build_lanes
from attnctl.ops.lanes import attend_token_lists
from tests.support.pipelines import generate

FRAMES = 3
PIXELS = 32


def random_flow(frames: int = FRAMES, seed: int = 0, size: int = PIXELS) -> ClipFlow:
    """Motion of some tokens a frame, with conflicts and ends."""
    generator = torch.Generator().manual_seed(seed)
    return ClipFlow(torch.randn(frames - 1, 2, size, size, generator=generator) * size / 8)


def still(frames: int = FRAMES, size: int = PIXELS) -> ClipFlow:
    """No motion."""
    return ClipFlow(torch.zeros(frames - 1, 2, size, size))


def outside(frames: int = FRAMES, size: int = PIXELS) -> ClipFlow:
    """Everything leaves the picture at once."""
    return ClipFlow(torch.full((frames - 1, 2, size, size), 10.0 * size))


def clip(pipe: Any, *techniques: Technique, frames: int = FRAMES, **changes: Any) -> Tensor:
    """Run a picture pipeline on the frames of one clip; latents ``(F, C, h, w)``."""
    arguments = {"prompt": ["a cat"] * frames, **changes}
    if not techniques:
        return generate(pipe, **arguments)
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **arguments)


def video(pipe: Any, *techniques: Technique, **changes: Any) -> Tensor:
    """Run a video pipeline."""
    if not techniques:
        return generate(pipe, **changes)
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **changes)


@dataclass(frozen=True)
class Keep(Technique):
    """Keeps the calls of its sites and their outputs at this place in the chain."""

    name: ClassVar[str] = "keep"
    can_repeat: ClassVar[bool] = True
    label: str = ""
    calls: list[tuple[AttentionCall, Tensor]] = field(
        default_factory=list[tuple[AttentionCall, Tensor]], compare=False
    )

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        self.calls.append((call, out))
        return out


def image_tokens(call: AttentionCall, out: Tensor, frames: int) -> Tensor:
    """Image tokens of each clip in one sequence, ``(clips, H, F * n, D)``, by plain loops."""
    assert call.layout is not None
    image = out[:, :, call.layout.image]
    if call.layout.is_video and call.layout.fold == "rows":
        return image
    clips = [image[start : start + frames] for start in range(0, len(image), frames)]
    return torch.stack([torch.cat(list(one), dim=1) for one in clips])


def followed(flow: ClipFlow, grid: tuple[int, int], tokens: Tensor, scale: float) -> Tensor:
    """Attention of each token to its own trajectory, one token at a time."""
    roots = build_lanes(flow, grid).roots().flatten()
    return attend_token_lists(tokens, tokens, tokens, roots, scale)
