"""Otsu's method: the values of a map parted into two classes."""

import torch
from torch import Tensor


def mask_of_map(seen: Tensor) -> Tensor:
    """Part the cells of a map in two: bool ``(h, w)``, True above `otsu_threshold`."""
    return seen > otsu_threshold(seen)


def otsu_threshold(values: Tensor) -> float:
    """Find the largest value of the lower of two classes that lie as far apart as possible.

    Args:
        values: float, any shape.

    Returns:
        The threshold; values above it are the upper class. If all are equal, minus infinity if
        they are at least 0.5, else infinity.

    Source: Otsu 1979: the split with the largest ``w_0 w_1 (m_0 - m_1)^2``, weights and means of
        both classes.
    """
    ordered = values.flatten().double().sort().values
    is_split = ordered[:-1] < ordered[1:]
    if not bool(is_split.any()):
        return -torch.inf if float(ordered[0]) >= 0.5 else torch.inf
    count = torch.arange(1, len(ordered), device=ordered.device)
    sums = ordered.cumsum(0)
    lower = sums[:-1] / count
    upper = (sums[-1] - sums[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (lower - upper) ** 2
    best = int(between.masked_fill(~is_split, -1.0).argmax())
    return float(ordered[best])
