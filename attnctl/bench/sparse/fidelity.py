"""How near two pictures are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import correlate1d

WINDOW = 11
"""Side of the window of `structural_similarity`, in pixels."""
SPREAD = 1.5
"""Standard deviation of its weights, in pixels."""

Pixels = NDArray[np.float64]


def to_pixels(image: Image.Image) -> Pixels:
    """Colours ``(H, W, 3)`` in [0, 1]."""
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def signal_to_noise(first: Pixels, second: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels; infinite for equal pictures.

    Args:
        first: ``(H, W, 3)`` in [0, 1].
        second: The same form.

    Raises:
        ValueError: the forms differ.
    """
    _same_form(first, second)
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def structural_similarity(first: Pixels, second: Pixels) -> float:
    """Mean structural similarity, 1 for equal pictures.

    Gaussian window of 11 x 11 pixels with a standard deviation of 1.5, whole windows only, mean
    over colours.

    Args:
        first: ``(H, W, 3)`` in [0, 1], at least 11 pixels a side.
        second: The same form.

    Raises:
        ValueError: the forms differ, or the pictures are too small.

    Source: Wang, Bovik, Sheikh and Simoncelli, IEEE Transactions on Image Processing 13 (2004).
    """
    _same_form(first, second)
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f"pictures of {first.shape} are smaller than the window of {WINDOW}")
    mean_1, mean_2 = _smooth(first), _smooth(second)
    variance_1 = _smooth(first * first) - mean_1**2
    variance_2 = _smooth(second * second) - mean_2**2
    together = _smooth(first * second) - mean_1 * mean_2
    small_1, small_2 = 0.01**2, 0.03**2
    likeness = (2 * mean_1 * mean_2 + small_1) * (2 * together + small_2)
    likeness /= (mean_1**2 + mean_2**2 + small_1) * (variance_1 + variance_2 + small_2)
    return float(likeness.mean())


def median_decibels(values: Sequence[float | None]) -> float | None:
    """Median of signal-to-noise ratios, ``None`` standing for equal pictures."""
    middle = float(np.median([math.inf if value is None else value for value in values]))
    return None if math.isinf(middle) else middle


def _smooth(values: Pixels) -> Pixels:
    distance = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-((distance / SPREAD) ** 2) / 2)
    weights /= weights.sum()
    half = WINDOW // 2
    for axis in (0, 1):
        values = correlate1d(values, weights, axis=axis)
    return values[half:-half, half:-half]


def _same_form(first: Pixels, second: Pixels) -> None:
    if first.shape != second.shape:
        raise ValueError(f"pictures of {first.shape} and {second.shape} cannot be compared")
