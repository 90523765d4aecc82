"""Where an object lies on its canvas and in the scene, in pixels and in cells of the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.editing.boxes import as_box
from attnctl.errors import SettingError
from attnctl.inversion.hosts import find_denoiser
from attnctl.ops.bounded_attention import Box
from attnctl.ops.composition import Shift, strided
from attnctl.sites import model_config

_EMPTY = (128, 128, 128)
"""Colour of a canvas around its object: the middle of the range that decoders know."""

_BINARY = [0] * 128 + [255] * 128


@dataclass(frozen=True, slots=True)
class Placement:
    """An object on a canvas of the scene's size, and the place where it goes.

    Attributes:
        canvas: The object on an otherwise empty picture, about its middle.
        pasted: The object in the scene, as it is.
        box: Where the picture may differ from the scene, bool ``(H, W)`` in pixels.
        mask: Cells of the latents that show the object on its canvas, bool ``(h, w)``.
        shift: From there to the scene, in cells.
        free: Cells of the latents that may differ from the scene, bool ``(h, w)``.
    """

    canvas: Image.Image
    pasted: Image.Image
    box: np.ndarray
    mask: Tensor
    shift: Shift
    free: Tensor

    @property
    def region(self) -> Tensor:
        """Cells of the latents that show the object in the scene, bool ``(h, w)``."""
        return torch.roll(self.mask, self.shift, (0, 1))


def read_box(value: Any) -> Box:
    """Read a box ``(x0, y0, x1, y1)`` in parts of the picture, also from ``"0.1,0.2,0.5,0.9"``.

    Raises:
        SettingError: there are not four numbers with ``0 <= x0 < x1 <= 1``, likewise y.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        box = as_box([float(part) for part in parts])
    except (TypeError, ValueError):
        box = None
    if box is not None:
        return box
    raise SettingError(
        f"compose: box={value!r} must be x0,y0,x1,y1 in parts of the picture from its upper left "
        "corner, with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, such as 0.1,0.3,0.5,0.9"
    )


def place(
    pipe: Any, scene: Image.Image, subject: Image.Image, mask: Image.Image | None, box: Box
) -> Placement:
    """Scale an object to its box, and put it on a canvas and into the scene.

    What the mask shows is cut out, scaled with its proportions to the largest size that fits the
    box, and centred there. On the canvas it lies as near to the middle as whole tokens of the
    coarsest layer between both places allow, so that its cells there and in the scene correspond
    in all layers.

    Args:
        pipe: A pipeline with a UNet.
        scene: RGB, of a size that the model takes.
        subject: RGB picture of the object, of any size.
        mask: White where the object is, of the size of ``subject``; ``None``: everywhere.
        box: Where it goes, in parts of the scene.

    Raises:
        SettingError: the mask has another size or nothing white, or the object is too small.
    """
    left, top, right, bottom = (
        round(part * side) for part, side in zip(box, scene.size * 2, strict=True)
    )
    left, top = min(left, scene.width - 1), min(top, scene.height - 1)
    room = max(1, right - left), max(1, bottom - top)
    cut, white = _fitted(*_cut(subject, mask), room)
    there = left + (room[0] - cut.width) // 2, top + (room[1] - cut.height) // 2
    factor = int(pipe.vae_scale_factor)
    stride = 2 ** (len(model_config(find_denoiser(pipe))["block_out_channels"]) - 1)
    here = (
        _near_middle(there[0], cut.width, scene.width, factor * stride),
        _near_middle(there[1], cut.height, scene.height, factor * stride),
    )
    canvas, shown = Image.new("RGB", scene.size, _EMPTY), Image.new("L", scene.size)
    canvas.paste(cut, here, white)
    shown.paste(white, here)
    pasted = scene.copy()
    pasted.paste(cut, there, white)
    inside = np.zeros((scene.height, scene.width), bool)
    inside[top : top + room[1], left : left + room[0]] = True
    cells = _cells(np.array(shown) > 0, factor)
    if not bool(cells.any()):
        raise SettingError(
            f"compose: the object takes {cut.width} x {cut.height} pixels of the box, too few for "
            f"a cell of {factor} x {factor} pixels; use a larger box, or a mask with more white"
        )
    shift = ((there[1] - here[1]) // factor, (there[0] - here[0]) // factor)
    free = _cells(inside, factor) | torch.roll(cells, shift, (0, 1))
    return Placement(canvas, pasted, inside, cells, shift, free)


def _cells(pixels: np.ndarray, factor: int) -> Tensor:
    """Cells whose middle pixel is marked.

    The authors take every 8th pixel from the first, which moves an object by half a cell.
    """
    middle = factor // 2
    return strided(torch.from_numpy(pixels)[middle:, middle:], factor)


def _cut(subject: Image.Image, mask: Image.Image | None) -> tuple[Image.Image, Image.Image]:
    """The smallest part of a picture that holds the object, and the mask of that part."""
    if mask is None:
        return subject.convert("RGB"), Image.new("L", subject.size, 255)
    if mask.size != subject.size:
        raise SettingError(
            f"compose: the mask has {mask.width} x {mask.height} pixels and the object's picture "
            f"{subject.width} x {subject.height}; make them one size"
        )
    white = mask.convert("L").point(_BINARY)
    around = white.getbbox()
    if around is None:
        raise SettingError("compose: the mask has no white pixel; paint the object white")
    return subject.convert("RGB").crop(around), white.crop(around)


def _fitted(
    cut: Image.Image, white: Image.Image, room: tuple[int, int]
) -> tuple[Image.Image, Image.Image]:
    """An object and its mask at the largest size that fits, with their proportions."""
    scale = min(room[0] / cut.width, room[1] / cut.height)
    size = max(1, round(cut.width * scale)), max(1, round(cut.height * scale))
    white = white.resize(size, Image.Resampling.BOX).point(_BINARY)
    return cut.resize(size, Image.Resampling.LANCZOS), white


def _near_middle(there: int, length: int, side: int, unit: int) -> int:
    """The place nearest to the middle of a side that is whole units away from another place."""
    fitting = range(there % unit, side - length + 1, unit)
    return min(fitting, key=lambda at: abs(2 * at + length - side))
