"""FloAt: self-attention maps of the frame before, warped along the motion.

Source: Mishra, Kulkarni, Ceylan, Srinivasan, "FloAt: Flow Warping of Self-Attention for Clothing
Animation Generation", 2024, arXiv 2411.15028. Its code is not public; what the paper leaves open is
a choice made here, and each function says which.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnctl.flow.fields import pixel_places, stays_inside

AXES = ("both", "query", "key")
REGIONS = ("all", "moving", "static")
INTERPOLATIONS = ("bilinear", "nearest")


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the tokens of a frame were in the frame before.

    Attributes:
        index: Tokens of the frame before that each token is read from, ``(k, n)``.
        weights: Their weights, ``(k, n)`` fp32; they sum to 1 over the first axis.
        inside: Whether a token was in the picture before, bool ``(n,)``.
        moves: Whether it has moved, bool ``(n,)``.
    """

    index: Tensor
    weights: Tensor
    inside: Tensor
    moves: Tensor

    def to(self, device: torch.device) -> "Trace":
        """The same on another device."""
        return Trace(*(getattr(self, name).to(device) for name in Trace.__slots__))


def trace_back(
    flow: Tensor, interpolation: str = "bilinear", least_motion_cells: float = 0.0
) -> Trace:
    """Follow the tokens of a frame to the frame before.

    Args:
        flow: From this frame to the one before, ``(2, h, w)`` in cells: dx, dy.
        interpolation: ``bilinear`` reads between four tokens, ``nearest`` takes one.
        least_motion_cells: Tokens with a longer displacement count as moving.

    Returns:
        Tokens row by row, ``n = h w``.
    """
    height, width = flow.shape[-2:]
    x, y = (pixel_places(height, width, flow.device) + flow).flatten(1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    if interpolation == "nearest":
        index = (y.round() * width + x.round()).long()[None]
        weights = torch.ones_like(index, dtype=torch.float32)
    else:
        left, top = x.floor(), y.floor()
        right, below = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)
        across, down = x - left, y - top
        places = [(top, left), (top, right), (below, left), (below, right)]
        index = torch.stack([(row * width + column).long() for row, column in places])
        weights = torch.stack(
            [(1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across]
        )
    inside = stays_inside(flow[None])[0].flatten()
    return Trace(index, weights, inside, flow.norm(dim=0).flatten() > least_motion_cells)


def warp_map(previous: Tensor, trace: Trace, axes: str) -> Tensor:
    """Bring the map of the frame before to the places of this frame.

    Args:
        previous: ``(..., n, n)``, queries first; of ``axes="query"`` any number of keys.
        trace: Of this frame.
        axes: ``query`` moves the rows, ``key`` the columns, ``both`` both:
            ``W[p, q] = previous[p + u(p), q + u(q)]``.

    Returns:
        Same shape. Where a token was outside of the picture its border is read.

    Source: flow warping of arXiv 2411.15028; which axes is a choice left open here.
    """
    if axes != "key":
        rows = [previous[..., one, :] * w[:, None] for one, w in _taps(trace, previous)]
        previous = torch.stack(rows).sum(dim=0)
    if axes != "query":
        columns = [previous[..., one] * w for one, w in _taps(trace, previous)]
        previous = torch.stack(columns).sum(dim=0)
    return previous


def follow_map(
    own: Tensor,
    previous: Tensor,
    trace: Trace,
    *,
    own_weight: float = 0.5,
    axes: str = "both",
    region: str = "all",
) -> Tensor:
    """Mix the map of a frame with that of the frame before, warped along the motion.

    Args:
        own: Map of this frame, ``(..., n, K)`` fp32, rows sum to 1.
        previous: Map of the frame before, same shape.
        trace: Of this frame.
        own_weight: Weight of ``own``, in [0, 1].
        axes: See `warp_map`.
        region: Rows that change: ``all``, those of ``moving`` tokens, or those of ``static`` ones,
            which take the map of the frame before as it is.

    Returns:
        Same shape; rows sum to 1. Rows and columns of tokens that were outside of the picture keep
        those of ``own``.

    Source: linear combination of arXiv 2411.15028 with its binary flow map; what that map does,
        borders and the division by the sum of a row are choices made here.
    """
    warped = previous if region == "static" else warp_map(previous, trace, axes)
    if region != "static" and axes != "query":
        warped = torch.where(trace.inside, warped, own)
    mixed = own_weight * own + (1 - own_weight) * warped
    total = mixed.sum(dim=-1, keepdim=True)
    mixed = torch.where(total > 0, mixed / total.clamp_min(torch.finfo(mixed.dtype).tiny), own)
    rows = trace.inside
    if region != "all":
        rows = rows & (trace.moves if region == "moving" else ~trace.moves)
    return torch.where(rows[:, None], mixed, own)


def _taps(trace: Trace, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each index ``(n,)`` with its weights, in the dtype of a map."""
    return list(zip(trace.index, trace.weights.to(like), strict=True))
