"""Blurred query maps, for guidance away from attention that has lost its detail.

Source: Hong, "Smoothed Energy Guidance", NeurIPS 2024, arXiv 2408.00760, section 4.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FLAT_SIGMA = 9999.0  # from here on, and below 0, a blur is the mean over the map


def blur_queries(query: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Blur queries over the places of their tokens.

    Args:
        query: ``(B, H, T * height * width, D)``, frames slowest; each frame is blurred alone.
        height: Rows of tokens in a frame.
        width: Columns of tokens in a frame.
        sigma: Standard deviation in tokens; negative or above 9999 means the mean of the frame.

    Returns:
        Blurred queries, same shape and dtype.

    Source: arXiv 2408.00760, with the true aspect ratio of the map.
    """
    maps = query.unflatten(2, (-1, height, width))  # (B, H, T, h, w, D)
    if is_flat(sigma):
        mean = maps.float().mean(dim=(3, 4), keepdim=True)
        return mean.to(query.dtype).expand_as(maps).flatten(2, 4)
    maps = maps.movedim(-1, 3)  # (B, H, T, D, h, w)
    blurred = gaussian_blur(maps.reshape(-1, 1, height, width).float(), sigma)
    return blurred.view(maps.shape).movedim(3, -1).to(query.dtype).flatten(2, 4)


def is_flat(sigma: float) -> bool:
    """Whether a blur of this width stands for the mean over the whole map."""
    return sigma < 0 or sigma > FLAT_SIGMA


def gaussian_blur(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps with a Gaussian, reflected at the borders.

    Args:
        maps: ``(B, 1, h, w)``.
        sigma: Standard deviation in cells, from 0.

    Returns:
        ``(B, 1, h, w)``.
    """
    rows = gaussian_weights(sigma, maps.shape[-2]).to(maps)
    columns = gaussian_weights(sigma, maps.shape[-1]).to(maps)
    across, down = len(columns) // 2, len(rows) // 2
    padded = F.pad(maps, (across, across, down, down), mode="reflect")
    return F.conv2d(F.conv2d(padded, rows.view(1, 1, -1, 1)), columns.view(1, 1, 1, -1))


def gaussian_weights(sigma: float, side: int) -> Tensor:
    """Weights of a Gaussian over an odd number of cells: 6 sigma, at most ``side``; sum 1, fp32."""
    wanted = max(1, math.ceil(6 * sigma))
    count = min(wanted + (wanted + 1) % 2, side - (side + 1) % 2)
    if count == 1:
        return torch.ones(1)
    places = torch.arange(count) - (count - 1) / 2
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    return weights / weights.sum()
