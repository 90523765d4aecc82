"""Heat maps of attention: bring maps of all sizes to one grid, and stretch them for display.

Source: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross Attention",
ACL 2023, arXiv 2210.04885, and its official code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT = 1e-5  # a map whose range is below this share of its maximum is float32 rounding


def upscale_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps by bicubic interpolation and cut the undershoot off at 0.

    Args:
        maps: ``(..., h, w)``, float, not negative.
        size: ``(H, W)`` in cells, rows first; at least 1 each.

    Returns:
        ``(..., H, W)``, float32, at least 0; unchanged values if the size is the same.

    Raises:
        ValueError: ``maps`` has fewer than two axes, or a side of ``size`` is below 1.

    Source: arXiv 2210.04885, section 2.2; bicubic, ``align_corners=False``.
    """
    if maps.ndim < 2 or min(size) < 1:
        raise ValueError(
            f"maps must be (..., h, w) and size at least (1, 1); got shape {tuple(maps.shape)} "
            f"and size {size}"
        )
    maps = maps.float()
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.clamp_min(0)
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    large = F.interpolate(flat, size=tuple(size), mode="bicubic", align_corners=False)
    return large.reshape(*maps.shape[:-2], *size).clamp_min(0)


def normalise_display(maps: Tensor, flat: float = FLAT) -> Tensor:
    """Stretch each map to [0, 1]: its minimum becomes 0 and its maximum 1.

    Args:
        maps: ``(..., H, W)``, float.
        flat: A map whose range is at most this share of its largest absolute value is constant
            but for rounding, and becomes 0 everywhere instead of stretched noise.

    Returns:
        ``(..., H, W)``, float32, in [0, 1].

    Source: the display step of the official code of arXiv 2210.04885 (there with ``+ 1e-8``).
    """
    maps = maps.float()
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    is_flat = span <= flat * torch.maximum(low.abs(), high.abs())
    stretched = (maps - low) / torch.where(is_flat, torch.ones_like(span), span)
    return stretched.masked_fill(is_flat, 0.0)
