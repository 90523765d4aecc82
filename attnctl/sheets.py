"""Contact sheets: pictures side by side with labels, and heat maps in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]

CELL_PX = 192
"""Small pictures are enlarged by a whole factor until they are at least this wide."""

MAX_CELL_PX = 384
"""Larger pictures are shrunk to this width on a sheet."""

LABEL_PX = 132
GAP_PX = 8
FONT_PX = 15
LINE_PX = 19
CAPTION_LINES = 3

PAPER: Rgb = (250, 250, 249)
INK: Rgb = (28, 28, 30)
GOOD: Rgb = (20, 120, 50)
BAD: Rgb = (178, 34, 34)

# Inferno at 0, 0.1, ... 1: even steps in lightness, so equal steps of attention look equal.
_HEAT = np.array(
    [
        (0, 0, 4),
        (22, 11, 57),
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    dtype=np.float64,
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture of a sheet, with a caption; ``good`` colours the caption green or red."""

    image: Image.Image
    caption: str = ""
    good: bool | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled row of a sheet."""

    label: str
    cells: Sequence[Cell]


def colour_heat(heat: np.ndarray) -> Image.Image:
    """Colour a heat map.

    Args:
        heat: ``(H, W)`` values in [0, 1]; what lies outside is clipped, NaN counts as 0.

    Raises:
        ValueError: ``heat`` has not two axes.
    """
    values = np.asarray(heat, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"a heat map has two axes (H, W), got the shape {values.shape}")
    place = np.clip(np.nan_to_num(values), 0.0, 1.0) * (len(_HEAT) - 1)
    below = np.minimum(place.astype(int), len(_HEAT) - 2)
    part = (place - below)[..., None]
    colours = _HEAT[below] * (1 - part) + _HEAT[below + 1] * part
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def overlay_heat(image: Image.Image, heat: np.ndarray, *, opacity: float = 0.65) -> Image.Image:
    """Lay a heat map over a picture, which shows through in grey.

    Args:
        image: The picture, any size.
        heat: ``(H, W)`` in [0, 1]; enlarged to the picture without sharp cell edges.
        opacity: 0 shows the grey picture alone, 1 the map alone.

    Raises:
        ValueError: ``opacity`` is outside [0, 1].
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity={opacity!r} is outside [0, 1]")
    colours = colour_heat(heat).resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image.convert("L").convert("RGB"), colours, opacity)


def enlarge(image: Image.Image, target_px: int = CELL_PX) -> Image.Image:
    """Make a small picture at least ``target_px`` wide by a whole factor, without smoothing."""
    factor = -(-target_px // image.width)
    if factor <= 1:
        return image
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def draw_grid(cells: Sequence[Cell], *, columns: int | None = None, title: str = "") -> Image.Image:
    """Put pictures into a grid that is about as wide as high."""
    if not cells:
        raise ValueError("a grid needs at least one picture")
    across = columns or min(len(cells), int(np.ceil(np.sqrt(len(cells)))))
    rows = [Row("", cells[i : i + across]) for i in range(0, len(cells), across)]
    return draw_sheet(rows, title=title)


def draw_sheet(rows: Sequence[Row], *, title: str = "") -> Image.Image:
    """Draw rows of pictures under each other, their labels on the left, captions below each.

    Args:
        rows: At least one row with at least one picture.
        title: A line above everything.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not any(row.cells for row in rows):
        raise ValueError("a sheet needs at least one picture")
    left = GAP_PX + (LABEL_PX if any(row.label for row in rows) else 0)
    pictures = [[_fit(cell.image) for cell in row.cells] for row in rows]
    width_px = max(image.width for line in pictures for image in line)
    columns = max(len(row.cells) for row in rows)
    heights_px = [_row_height(row, line) for row, line in zip(rows, pictures, strict=True)]
    width = left + columns * (width_px + GAP_PX)
    title_lines = _wrap(title, width - 2 * GAP_PX, 2) if title else []
    top = GAP_PX + LINE_PX * len(title_lines)
    sheet = Image.new("RGB", (width, top + sum(heights_px) + GAP_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (GAP_PX, GAP_PX // 2), title_lines, INK)
    for row, line, height_px in zip(rows, pictures, heights_px, strict=True):
        _write(draw, (GAP_PX, top), _wrap(row.label, LABEL_PX - GAP_PX, 5), INK)
        for column, (cell, image) in enumerate(zip(row.cells, line, strict=True)):
            x = left + column * (width_px + GAP_PX)
            sheet.paste(image, (x, top))
            colour = INK if cell.good is None else GOOD if cell.good else BAD
            _write(draw, (x, top + image.height + 2), _caption(cell, width_px), colour)
        top += height_px
    return sheet


def _row_height(row: Row, images: Sequence[Image.Image]) -> int:
    lines = max(
        (len(_caption(c, i.width)) for c, i in zip(row.cells, images, strict=True)), default=0
    )
    return max((image.height for image in images), default=0) + LINE_PX * lines + GAP_PX


def _fit(image: Image.Image) -> Image.Image:
    shown = enlarge(image.convert("RGB"))
    if shown.width > MAX_CELL_PX:
        height = max(1, round(shown.height * MAX_CELL_PX / shown.width))
        shown = shown.resize((MAX_CELL_PX, height), Image.Resampling.LANCZOS)
    return shown


def _caption(cell: Cell, width_px: int) -> list[str]:
    return _wrap(cell.caption, width_px, CAPTION_LINES)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_PX)


def _wrap(text: str, width_px: int, most: int) -> list[str]:
    """Break ``text`` at spaces into at most ``most`` lines; a longer one ends in an ellipsis."""
    font = _font()
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]}..."]
    return [_shorten(line, width_px) for line in lines]


def _shorten(line: str, width_px: int) -> str:
    font = _font()
    if font.getlength(line) <= width_px:
        return line
    kept = line.removesuffix("...")
    while kept and font.getlength(kept + "...") > width_px:
        kept = kept[:-1]
    return kept + "..."


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[str], fill: Rgb) -> None:
    for number, line in enumerate(lines):
        draw.text((at[0], at[1] + number * LINE_PX), line, fill=fill, font=_font())
