"""How much of a picture an edit left alone: PSNR and SSIM, whole, inside and outside a mask."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from attnctl.errors import SettingError

PSNR_LIMIT = 99.0
"""PSNR of equal pictures, dB, in place of infinity."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Likeness of an edit and its source; ``None`` where there is no mask, or it has no pixels.

    Attributes:
        psnr: Of the whole picture, dB, at most :data:`PSNR_LIMIT`.
        ssim: Of the whole picture, in [-1, 1].
        psnr_outside: Where the mask is black.
        ssim_outside: Where the mask is black.
        psnr_inside: Where the mask is white.
        ssim_inside: Where the mask is white.
        reconstruction_psnr: Of the source's own reconstruction; what the model's decoder loses,
            and, without replay, what the inversion loses.
    """

    psnr: float
    ssim: float
    psnr_outside: float | None = None
    ssim_outside: float | None = None
    psnr_inside: float | None = None
    ssim_inside: float | None = None
    reconstruction_psnr: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Plain values of what is known, rounded to four digits."""
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}


def score(
    source: Image.Image,
    edited: Image.Image,
    region: np.ndarray | None = None,
    reconstruction: Image.Image | None = None,
) -> Scores:
    """Compare an edit with its source.

    Args:
        source: RGB.
        edited: RGB of the same size.
        region: ``(H, W)`` bool, True where the edit belongs; ``None``: not known.
        reconstruction: The source as the model reconstructs it.

    Raises:
        SettingError: the sizes differ.
    """
    a, b = _values(source), _values(edited)
    if a.shape != b.shape or (region is not None and region.shape != a.shape[:2]):
        raise SettingError(
            f"pictures of {source.size} and {edited.size} pixels"
            + ("" if region is None else f" and a region of {region.shape[::-1]}")
            + " cannot be compared; make them one size"
        )
    squares, likeness = ((a - b) ** 2).mean(axis=2), ssim_map(a, b)
    values: dict[str, Any] = {"psnr": _psnr(squares), "ssim": float(likeness.mean())}
    if region is not None:
        for name, where in (("outside", ~region), ("inside", region)):
            if where.any():
                values[f"psnr_{name}"] = _psnr(squares[where])
                values[f"ssim_{name}"] = float(likeness[where].mean())
    if reconstruction is not None:
        values["reconstruction_psnr"] = psnr(source, reconstruction)
    return Scores(**values)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, dB."""
    return _psnr((_values(a) - _values(b)) ** 2)


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity at each pixel.

    Args:
        a: ``(H, W, C)`` in [0, 1].
        b: The same shape.

    Returns:
        ``(H, W)``: mean over channels, Gaussian window of 11 pixels, sigma 1.5.

    Source: Wang et al., 2004, *Image quality assessment*, eq. 13.
    """
    first, second = 0.01**2, 0.03**2

    def blurred(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, sigma=(1.5, 1.5, 0), radius=(5, 5, 0))

    mean_a, mean_b = blurred(a), blurred(b)
    variance_a = blurred(a * a) - mean_a**2
    variance_b = blurred(b * b) - mean_b**2
    together = blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + first) * (2 * together + second)
    below = (mean_a**2 + mean_b**2 + first) * (variance_a + variance_b + second)
    return (above / below).mean(axis=2)


def _psnr(squares: np.ndarray) -> float:
    error = float(squares.mean())
    return PSNR_LIMIT if error <= 0 else min(PSNR_LIMIT, -10 * float(np.log10(error)))


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255
