"""Fewer keys and values: image tokens sampled on a coarser grid.

Source: Smith et al., "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images",
arXiv 2402.13573, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SELECTING = ("nearest-exact", "nearest")
METHODS = (*SELECTING, "bilinear", "average")


def downsample_tokens(
    values: Tensor, tokens: slice, height: int, width: int, factor: int, method: str
) -> Tensor:
    """Sample image tokens on a grid that is ``factor`` times coarser; other tokens stay.

    Args:
        values: ``(B, H, K, D)``.
        tokens: Image tokens among the K, frames of ``height x width`` one after the other.
        height: Rows of tokens in a frame, at least ``factor``.
        width: Columns of tokens in a frame, at least ``factor``.
        factor: How much coarser, from 1.
        method: ``nearest-exact`` takes the token at the middle of each cell, ``nearest`` its top
            left one, ``bilinear`` interpolates at the middle, ``average`` takes the cell's mean.

    Returns:
        ``(B, H, K', D)`` with ``(height // factor) * (width // factor)`` image tokens a frame; a
        remainder of the division is spread over the grid, ``average`` leaves it out.
    """
    batch, heads, _, depth = values.shape
    sizes = (height // factor, width // factor)
    image = values[:, :, tokens].transpose(1, 2)  # (B, T * h * w, H, D)
    maps = image.reshape(-1, height, width, heads * depth).permute(0, 3, 1, 2)
    if method == "average":
        small = F.avg_pool2d(maps, factor)
    elif method == "bilinear":
        small = F.interpolate(maps, size=sizes, mode=method, align_corners=False)
    else:
        small = F.interpolate(maps, size=sizes, mode=method)
    small = small.permute(0, 2, 3, 1).reshape(batch, -1, heads, depth).transpose(1, 2)
    if tokens.start == 0 and tokens.stop == values.shape[2]:
        return small
    return torch.cat([values[:, :, : tokens.start], small, values[:, :, tokens.stop :]], dim=2)


def downsample_mask(
    mask: Tensor, tokens: slice, height: int, width: int, factor: int, method: str
) -> Tensor:
    """Keep the columns of a mask whose keys :func:`downsample_tokens` keeps.

    Args:
        mask: Boolean or additive, ``(..., Q | 1, K | 1)``, two to four axes.
        tokens: As in :func:`downsample_tokens`, like all that follows.
        height: See there.
        width: See there.
        factor: See there.
        method: One that selects tokens, ``nearest-exact`` or ``nearest``.

    Returns:
        ``(..., Q | 1, K' | 1)``, same dtype.
    """
    if mask.shape[-1] == 1:
        return mask
    columns = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape)).transpose(-1, -2)
    numbers = columns.float() if mask.dtype == torch.bool else columns
    kept = downsample_tokens(numbers, tokens, height, width, factor, method)
    return kept.transpose(-1, -2).to(mask.dtype).reshape(*mask.shape[:-1], -1)
