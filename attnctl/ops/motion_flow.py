"""MotionFlow: where a subject is in each frame of a clip, and how far another one is from there.

Source: Meral, Yesiltepe, Dunlop, Yanardag, "MotionFlow: Attention-Driven Motion Transfer in Video
Diffusion Models", arXiv 2412.05275. Its code was not available; how maps become masks, and the
form of the loss, are reconstructed.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.attend_and_excite import smooth_maps
from attnctl.ops.otsu import mask_of_map


def merge_maps(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Average the maps of several layers, on one grid.

    Args:
        maps: ``(B, F, h, w)`` each; smaller ones are interpolated.
        size: Rows and columns of the result.

    Returns:
        ``(B, F, *size)``, fp32 (fp64 stays), differentiable.
    """
    resized = [
        one if tuple(one.shape[2:]) == size else F.interpolate(one, size=size, mode="bilinear")
        for one in map(_wide, maps)
    ]
    return torch.stack(resized).mean(dim=0)


def scaled_frames(maps: Tensor) -> Tensor:
    """Scale each frame to [0, 1]; one that is equal everywhere becomes 0, without a gradient.

    Args:
        maps: ``(..., h, w)``, float.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    is_flat = high == low
    span = torch.where(is_flat, torch.ones_like(high), high - low)
    return torch.where(is_flat, torch.zeros_like(maps), (maps - low) / span)


def motion_masks(maps: Tensor, threshold: float | None = None, *, smoothing: bool = True) -> Tensor:
    """Mark where a subject is in each frame.

    Args:
        maps: Attention to the subject's words, ``(B, F, h, w)``; each frame is scaled to [0, 1].
        threshold: Cells above it are inside, in [0, 1]; None: Otsu's threshold of each frame.
        smoothing: Blur the scaled frames by one cell first.

    Returns:
        bool ``(B, F, h, w)``; a frame that is equal everywhere has nothing inside.
    """
    scaled = scaled_frames(_wide(maps.detach()))
    if smoothing:
        scaled = smooth_maps(scaled)
    if threshold is not None:
        return scaled > threshold
    frames = [mask_of_map(frame) for frame in scaled.flatten(0, 1)]
    return torch.stack(frames).unflatten(0, scaled.shape[:2])


def resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Take masks to another grid by the area that they cover.

    Args:
        masks: bool, or numbers in [0, 1], ``(F, H, W)``.
        size: Rows and columns of the result.

    Returns:
        bool ``(F, *size)``: cells of which at least half is inside.
    """
    return F.interpolate(masks[None].float(), size=size, mode="area")[0] >= 0.5


def mask_losses(maps: Tensor, masks: Tensor, beta: float = 0.0) -> Tensor:
    """Measure how much of each subject's attention lies outside its masks.

    With ``q`` the map of a frame, scaled to [0, 1], and ``m`` its mask, a frame counts
    ``(1 - sum(q m) / sum(q))^2 + beta * BCE(q, m)``.

    Args:
        maps: Attention to the subject's words, ``(B, F, h, w)``; its scale does not matter.
        masks: bool ``(B | 1, F, h, w)``.
        beta: Weight of the cross-entropy, from 0.

    Returns:
        Mean over frames, ``(B,)``, fp32 (fp64 stays), differentiable.
    """
    scaled, inside = scaled_frames(_wide(maps)), masks.to(maps.device).expand(maps.shape)
    tiny = torch.finfo(scaled.dtype).eps
    share = (scaled * inside).sum((-2, -1)) / scaled.sum((-2, -1)).clamp_min(tiny)
    losses = (1 - share).square()
    if beta:
        likely = torch.where(inside, scaled, 1 - scaled).clamp_min(tiny)
        losses = losses - beta * likely.log().mean((-2, -1))
    return losses.mean(dim=1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
