"""What a program says of an edited clip whose true motion is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from attnctl.flow import warp
from attnctl.shapes.captions import Caption
from attnctl.shapes.clips import Clip
from attnctl.shapes.verifier import Verdict, verify

LEAST_MOTION_PX = 1e-3
EDGE_PX = 3
"""Pixels this near to the edited object do not count as untouched."""


@dataclass(frozen=True, slots=True)
class ClipScores:
    """Scores of one edited clip.

    Attributes:
        warping_error: Mean absolute colour difference, in [0, 1], between each frame and the next
            one brought back by the true flow, over the pixels that stay visible. Lower is steadier.
        flicker: The same over pixels that do not move at all.
        success: Share of frames that show every object of the target caption.
        exact: Share of frames that show these objects and nothing else.
        identity: Share of the target's objects that keep their colour and shape in every frame.
        preservation: PSNR to the right answer outside the edited object, dB.
    """

    warping_error: float
    flicker: float
    success: float
    exact: float
    identity: float
    preservation: float

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def score_clip(frames: Tensor, clip: Clip, answer: Clip, slot: int) -> ClipScores:
    """Score an edited clip.

    Args:
        frames: ``(F, 3, H, W)`` in [0, 1], of the size of the clip.
        clip: The source.
        answer: The clip with the object in its new colour or shape, as rendering gives it.
        slot: The edited object.
    """
    verdicts = [verify(frame, answer.caption) for frame in frames]
    return ClipScores(
        warping_error=warping_error(frames, answer),
        flicker=flicker(frames, answer),
        success=_share([verdict.all_right for verdict in verdicts]),
        exact=_share([verdict.exact for verdict in verdicts]),
        identity=kept_objects(verdicts, answer.caption),
        preservation=preservation(frames, answer, slot, clip),
    )


def warping_error(frames: Tensor, clip: Clip) -> float:
    """Mean absolute difference along the true flow, over visible pixels, in [0, 1]."""
    return _difference(frames, clip, clip.visible)


def flicker(frames: Tensor, clip: Clip) -> float:
    """Mean absolute difference of consecutive frames where nothing moves, in [0, 1]."""
    rests = clip.flow.forward.norm(dim=1) < LEAST_MOTION_PX
    return _difference(frames, clip, clip.visible & rests)


def kept_objects(verdicts: list[Verdict], target: Caption) -> float:
    """Share of the objects that every frame shows in their colour and shape."""
    missing = {kind for verdict in verdicts for kind in verdict.missing}
    return 1 - len(missing) / len(set(target.objects))


def preservation(frames: Tensor, answer: Clip, slot: int, source: Clip | None = None) -> float:
    """PSNR outside of the edited object and its edge, before and after, dB; at most 100."""
    size = 2 * EDGE_PX + 1
    covered = answer.objects == slot
    if source is not None:
        covered |= source.objects == slot
    own = covered[:, None].float()
    near = torch.nn.functional.max_pool2d(own, size, 1, EDGE_PX) > 0
    error = (frames - answer.frames).square().mean(1, keepdim=True)[~near].mean()
    return min(100.0, float(-10 * error.clamp_min(1e-12).log10()))


def end_point_error(flow: Tensor, clip: Clip, mask: Tensor | None = None) -> float:
    """Median distance of an estimated flow from the true one over visible pixels, in pixels.

    Args:
        flow: ``(F - 1, 2, H, W)``.
        clip: The clip that it was estimated for.
        mask: bool ``(F - 1, H, W)``: fewer pixels than the visible ones.
    """
    where = clip.visible if mask is None else clip.visible & mask
    return float((flow - clip.flow.forward).norm(dim=1)[where].median())


def _difference(frames: Tensor, clip: Clip, where: Tensor) -> float:
    if len(frames) < 2 or not bool(where.any()):
        return 0.0
    back = warp(frames[1:], clip.flow.forward)
    return float((back - frames[:-1]).abs().mean(1)[where].mean())


def _share(answers: list[bool]) -> float:
    return sum(answers) / len(answers)
