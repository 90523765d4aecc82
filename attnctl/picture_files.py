"""Read any still picture file as RGB, and say what had to be converted."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from attnctl.errors import RecipeError
from attnctl.imaging import open_picture

LEAST_PX = 16
"""Smallest side of a picture that is taken, in pixels."""

PAPER = (255, 255, 255)
"""What shows behind transparent pixels."""

_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """A picture file that was read.

    Attributes:
        image: RGB, 8 bit a channel, upright.
        notes: What was converted, one sentence each; empty for a plain RGB file.
    """

    image: Image.Image
    notes: tuple[str, ...] = ()


def read_picture(path: str | os.PathLike[str]) -> ReadPicture:
    """Read a picture file in any format that Pillow knows.

    Upright by its EXIF orientation; 16-bit grey scaled to 8 bit; transparent pixels over white;
    palettes, grey and CMYK to RGB. Colour profiles are not applied.

    Raises:
        RecipeError: the file is missing, no picture, truncated, animated, of floating-point
            values, larger than :data:`attnctl.imaging.MAX_PIXELS` or with a side of less than
            :data:`LEAST_PX` pixels.
    """
    name = os.fspath(path)
    image = open_picture(path)
    _refuse(image, name)
    notes: list[str] = []
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("turned upright by its EXIF orientation")
    if image.mode in (*_SIXTEEN_BIT, "I"):
        image = _eight_bit(image)
        notes.append("16-bit values scaled to 8 bit")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (*PAPER, 255))
        image = Image.alpha_composite(paper, layer)
        notes.append("transparent pixels laid over white")
    if image.mode not in ("RGB", "RGBA"):
        notes.append(f"{image.mode} pixels converted to RGB")
    return ReadPicture(image.convert("RGB"), tuple(notes))


def _refuse(image: Image.Image, name: str) -> None:
    """Refuse what is no still picture of a useful size."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview behind it
        raise RecipeError(
            f"{name!r} is animated, with {frames} frames; save one of them as a PNG file"
        )
    if image.mode == "F":
        raise RecipeError(
            f"{name!r} holds floating-point values, whose range is not known; save it as an 8-bit "
            "PNG file"
        )
    if min(image.size) < LEAST_PX:
        raise RecipeError(
            f"{name!r} has {image.width} x {image.height} pixels; at least {LEAST_PX} on each side "
            "are needed"
        )


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bit in 8 bit; 32-bit integers that fit are taken for 8 or 16 bit."""
    values = np.asarray(image).astype(np.int64)
    scale = 257 if image.mode in _SIXTEEN_BIT or values.max() > 255 else 1
    return Image.fromarray(np.clip(np.rint(values / scale), 0, 255).astype(np.uint8))
