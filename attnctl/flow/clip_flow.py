"""The flow of a whole clip: forward, backward, occlusion and cuts."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from attnctl.errors import FlowError
from attnctl.flow.fields import check_flow, pick_frames, resize_flow, stays_inside, warp

OCCLUSION_SLOPE = 0.01
OCCLUSION_OFFSET = 0.5
"""Both in the unit of the squared error, at the size of the pictures."""

CUT_ERROR = 0.12
"""Mean colour error after warping, in [0, 1], above which two frames are different scenes."""

CUT_JUMP, LEAST_CUT_ERROR = 8.0, 0.02
"""So many times the clip's median error, if it is not below the least one, is a cut as well."""


@dataclass(frozen=True, eq=False)
class ClipFlow:
    """Motion of a clip of F frames.

    Attributes:
        forward: ``(F - 1, 2, H, W)`` float32 in pixels, frame t to t + 1.
        backward: The same shape, frame t + 1 to t; ``None`` if it was not estimated.
        cuts: Each t for which frames t and t + 1 belong to different scenes.

    Raises:
        FlowError: shapes do not fit, values are not finite, a cut lies outside the clip.
    """

    forward: Tensor
    backward: Tensor | None = None
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "forward", check_flow(self.forward, "forward flow"))
        if self.backward is not None:
            object.__setattr__(self, "backward", check_flow(self.backward, "backward flow"))
            if self.backward.shape != self.forward.shape:
                raise FlowError(
                    f"forward flow is {tuple(self.forward.shape)}, backward flow"
                    f" {tuple(self.backward.shape)}; they must be equal"
                )
        if any(not 0 <= t < len(self.forward) for t in self.cuts):
            raise FlowError(f"cuts {self.cuts} must lie in 0 to {len(self.forward) - 1}")

    @property
    def frames(self) -> int:
        """Frames of the clip."""
        return len(self.forward) + 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return int(self.forward.shape[2]), int(self.forward.shape[3])

    def check_frames(self, frames: int) -> None:
        """Refuse a clip of another length.

        Raises:
            FlowError: the flow is for another number of frames.
        """
        if frames != self.frames:
            raise FlowError(
                f"the flow is for {self.frames} frames, the clip has {frames}; estimate the flow of"
                " this very clip, with the same frame range and stride"
            )

    def occluded(self) -> Tensor:
        """Pixels of frame t that are hidden in frame t + 1, bool ``(F - 1, H, W)``.

        Raises:
            FlowError: there is no backward flow.
        """
        if self.backward is None:
            raise FlowError("occlusion needs the backward flow; estimate it with backward=True")
        return find_occlusion(self.forward, self.backward)

    def resized(self, height: int, width: int) -> "ClipFlow":
        """The same motion at another picture size."""
        back = None if self.backward is None else resize_flow(self.backward, height, width)
        return replace(self, forward=resize_flow(self.forward, height, width), backward=back)

    def picked(self, frames: list[int]) -> "ClipFlow":
        """The motion between chosen frames, with a cut wherever one was skipped."""
        back = None
        if self.backward is not None:
            mirrored = [self.frames - 1 - t for t in reversed(frames)]
            back = pick_frames(self.backward.flip(0), mirrored).flip(0)
        steps = list(pairwise(frames))
        cuts = tuple(i for i, (a, b) in enumerate(steps) if any(a <= t < b for t in self.cuts))
        return ClipFlow(pick_frames(self.forward, frames), back, cuts)


def find_occlusion(
    forward: Tensor,
    backward: Tensor,
    slope: float = OCCLUSION_SLOPE,
    offset: float = OCCLUSION_OFFSET,
) -> Tensor:
    """Find pixels whose way there and back does not end where it began.

    Args:
        forward: ``(B, 2, H, W)`` in pixels.
        backward: The way back, the same shape.
        slope: Tolerance as a share of the squared lengths.
        offset: Tolerance in squared pixels.

    Returns:
        bool ``(B, H, W)``: ``|fw + bw(x + fw)|^2 > slope (|fw|^2 + |bw|^2) + offset``, or the
        target lies outside the picture.

    Source: Meister et al., "UnFlow", arXiv 1711.07837, equation 2.
    """
    back = warp(backward, forward)
    error = (forward + back).square().sum(1)
    length = forward.square().sum(1) + back.square().sum(1)
    return (error > slope * length + offset) | ~stays_inside(forward)


def find_cuts(frames: Tensor, forward: Tensor) -> tuple[int, ...]:
    """Find scene cuts: pairs of frames that no motion explains.

    Args:
        frames: ``(F, 3, H, W)`` in [0, 1].
        forward: ``(F - 1, 2, H, W)`` in pixels.

    Returns:
        Each t for which a cut lies between frames t and t + 1: the mean absolute colour error after
        warping is large, or stands out from that of the other pairs.
    """
    if len(frames) < 2:
        return ()
    error = (warp(frames[1:].float(), forward) - frames[:-1].float()).abs().mean((1, 2, 3))
    stands_out = (error > CUT_JUMP * error.median()) & (error > LEAST_CUT_ERROR)
    return tuple(int(t) for t in torch.nonzero((error > CUT_ERROR) | stands_out).flatten())
