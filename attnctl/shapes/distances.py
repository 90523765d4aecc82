"""Signed distance functions of the shapes, in units of the object's radius.

Every shape fits into the square ``[-1, 1] x [-1, 1]``; y points down, as in a picture.
Negative is inside. Far from the outline some of them are bounds instead of exact distances;
the zero line, which is what anti-aliasing needs, is exact.

Source: the two-dimensional distance functions collected by Inigo Quilez.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    over_x, over_y = x.abs() - half_width, y.abs() - half_height
    outside = torch.hypot(over_x.clamp_min(0), over_y.clamp_min(0))
    return outside + torch.maximum(over_x, over_y).clamp_max(0)


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.88, 0.88)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    # Corners (0, -1) and (+-1, 0.8): the slanted sides have the normal (1.8, -1) / length.
    length = math.hypot(1.8, 1.0)
    sides = (1.8 * x.abs() - (y + 1.0)) / length
    return torch.maximum(sides, y - 0.8)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 1.0, 0.34), _box(x, y, 0.34, 1.0))


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Fold into one tenth of the plane, then measure to the line from a tip to an inner corner.
    sector = math.pi / 5
    angle = torch.atan2(x, -y)
    folded = (torch.remainder(angle + sector, 2 * sector) - sector).abs()
    length = torch.hypot(x, y)
    along, across = length * torch.cos(folded), length * torch.sin(folded)
    inner_x, inner_y = 0.45 * math.cos(sector), 0.45 * math.sin(sector)
    edge_x, edge_y = inner_x - 1.0, inner_y
    norm = math.hypot(edge_x, edge_y)
    return ((along - 1.0) * edge_y - across * edge_x) / norm


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74).abs() - 0.26


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # The heart of the source is 1.21 wide and 1.10 high and has its tip at the origin.
    scale = 1.65
    across, up = x.abs() / scale, (0.91 - y) / scale
    lobe = torch.hypot(across - 0.25, up - 0.75) - math.sqrt(2) / 4
    to_top = across.square() + (up - 1).square()
    half_sum = 0.5 * (across + up).clamp_min(0)
    to_side = (across - half_sum).square() + (up - half_sum).square()
    body = torch.minimum(to_top, to_side).sqrt() * torch.sign(across - up)
    return torch.where(across + up > 1, lobe, body) * scale


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() + y.abs() - 1.0) / math.sqrt(2)


DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "diamond": _diamond,
}


def signed_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Measure the signed distance from points to a shape's outline.

    Args:
        shape: A name from ``DISTANCES``.
        x: Horizontal offset from the object's centre, in radii, any shape.
        y: Vertical offset (down is positive), in radii, broadcastable with ``x``.

    Returns:
        Distance in radii, negative inside, broadcast shape of ``x`` and ``y``.

    Raises:
        ValueError: The shape is unknown.
    """
    if shape not in DISTANCES:
        raise ValueError(f'unknown shape "{shape}"; choose one of {", ".join(DISTANCES)}')
    return DISTANCES[shape](x, y)
