"""Pictures of flow: hue is direction, saturation is speed."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.errors import FlowError

# Colours at eight even steps of direction, from right clockwise (y points down).
_WHEEL = np.array(
    [
        (229, 57, 53),
        (245, 166, 35),
        (240, 225, 60),
        (110, 190, 70),
        (38, 166, 154),
        (66, 133, 220),
        (110, 80, 200),
        (210, 70, 160),
    ],
    dtype=np.float64,
)


def colour_flow(flow: Tensor, fastest_px: float | None = None) -> Image.Image:
    """Colour a field of displacements; what rests is white.

    Args:
        flow: ``(2, H, W)`` in pixels.
        fastest_px: Length that gets the full colour; the largest one in the field by default.

    Raises:
        FlowError: ``flow`` has another shape, or ``fastest_px`` is not positive.
    """
    if flow.dim() != 3 or flow.shape[0] != 2:
        raise FlowError(f"a flow picture needs (2, H, W); got {tuple(flow.shape)}")
    if fastest_px is not None and not fastest_px > 0:
        raise FlowError(f"fastest_px={fastest_px!r} must be above 0")
    dx, dy = flow.detach().cpu().double().numpy()
    length = np.hypot(dx, dy)
    fastest = fastest_px or max(float(length.max(initial=0.0)), 1e-6)
    part = np.clip(length / fastest, 0, 1)[..., None]
    turn = (np.arctan2(dy, dx) / (2 * np.pi)) % 1 * len(_WHEEL)
    below = turn.astype(int) % len(_WHEEL)
    between = (turn - np.floor(turn))[..., None]
    colour = _WHEEL[below] * (1 - between) + _WHEEL[(below + 1) % len(_WHEEL)] * between
    return Image.fromarray(np.rint(255 * (1 - part) + colour * part).astype(np.uint8))


def flow_wheel(size_px: int = 96) -> Image.Image:
    """The key to :func:`colour_flow`: each colour lies in the direction that it stands for."""
    place = (torch.arange(size_px, dtype=torch.float32) + 0.5) / size_px * 2 - 1
    y, x = torch.meshgrid(place, place, indexing="ij")
    inside = torch.hypot(x, y) <= 1
    return colour_flow(torch.stack([x, y]) * inside, 1.0)
