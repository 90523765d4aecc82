"""Masks of pictures from where words look."""

import torch
import torch.nn.functional as F
from torch import Tensor


def blend_mask(
    maps: Tensor, size: tuple[int, int], threshold: float, *, pool: bool = True
) -> Tensor:
    """Mask of the cells whose map exceeds a share of its maximum.

    Args:
        maps: Non-negative sums of word maps, ``(B, h, w)``; their scale does not matter.
        size: Height and width of the mask in cells.
        threshold: Share of the largest value, in [0, 1].
        pool: Widen each map by one cell first.

    Returns:
        bool ``(B, 1, H, W)``; a map without any mass gives an empty mask.

    Source: local blending of Hertz et al., arXiv 2208.01626, code: 3x3 maximum, nearest cells,
        threshold 0.3.
    """
    wide = maps[:, None].float()
    if pool:
        wide = F.max_pool2d(wide, 3, stride=1, padding=1)
    wide = F.interpolate(wide, size=size, mode="nearest")
    largest = wide.amax((2, 3), keepdim=True)
    return wide > threshold * largest


def blend_latents(source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Keep the target inside the mask and the source outside.

    Args:
        source: Latents ``(1, C, H, W)``.
        target: Latents ``(B, C, H, W)``.
        mask: bool ``(B, 1, H, W)``.
    """
    return torch.where(mask, target, source)


def subject_mask(word_map: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Mask of the cells where a word looks, min-max normalised.

    Args:
        word_map: Attention to the word, ``(h, w)``.
        size: Height and width of the mask in cells.
        threshold: Least normalised value, in [0, 1].

    Returns:
        bool ``(H, W)``; a map that is equal everywhere gives a full mask.

    Source: automatic masks of MasaCtrl, arXiv 2304.08465, code: nearest cells, threshold 0.1.
    """
    low, high = word_map.min(), word_map.max()
    scaled = (word_map - low) / (high - low) if bool(high > low) else torch.ones_like(word_map)
    resized = F.interpolate(scaled[None, None].float(), size=size, mode="nearest")
    return resized[0, 0] >= threshold
