"""Show a block layout as text or as a picture."""

import torch
from PIL import Image
from torch import Tensor

from attnctl.kernels.blocking import mark_blocks
from attnctl.kernels.layout import BlockLayout

EMPTY, PARTIAL, FULL = 0, 1, 2
_LETTERS = ".+#"
_COLOURS = ((245, 245, 245), (120, 170, 220), (20, 60, 120))


def block_kinds(layout: BlockLayout, item: int = 0, head: int = 0) -> Tensor:
    """Return what each block is: 0 empty, 1 partial, 2 full; ``(query blocks, key blocks)``.

    Args:
        layout: The layout.
        item: Batch item; ignored if the lists are shared by all.
        head: Head; likewise.
    """
    batch, heads = layout.full_count.shape[:2]
    at = (item if batch > 1 else 0, head if heads > 1 else 0)
    full = mark_blocks(layout.full_count, layout.full_index, layout.k_blocks)[at]
    partial = mark_blocks(layout.partial_count, layout.partial_index, layout.k_blocks)[at]
    return FULL * full + PARTIAL * partial


def layout_text(layout: BlockLayout, *, item: int = 0, head: int = 0, most: int = 64) -> str:
    """Draw a layout with one letter a block: ``#`` full, ``+`` partial, ``.`` empty.

    Args:
        layout: The layout.
        item: Batch item.
        head: Head.
        most: Most letters in a line; larger layouts show several blocks as one letter: full or
            empty if all of them are, else partial.

    Returns:
        A line of figures, then one line a row of blocks.
    """
    kinds = _shrink(block_kinds(layout, item, head), most)
    lines = ["".join(_LETTERS[kind] for kind in row) for row in kinds.tolist()]
    return "\n".join([repr(layout), *lines])


def layout_picture(
    layout: BlockLayout, *, item: int = 0, head: int = 0, cell_px: int = 4, most: int = 256
) -> Image.Image:
    """Draw a layout with one square a block: dark full, light blue partial, grey empty.

    Args:
        layout: The layout.
        item: Batch item.
        head: Head.
        cell_px: Side of a square in pixels, at least 1.
        most: Most squares in a row, as in `layout_text`.
    """
    kinds = _shrink(block_kinds(layout, item, head), most).cpu()
    colours = torch.tensor(_COLOURS, dtype=torch.uint8)[kinds.long()]
    wide = colours.repeat_interleave(cell_px, 0).repeat_interleave(cell_px, 1)
    return Image.fromarray(wide.numpy())


def _shrink(kinds: Tensor, most: int) -> Tensor:
    step = -(-max(kinds.shape) // most)
    if step == 1:
        return kinds
    lines: list[Tensor] = []
    for rows in kinds.split(step, 0):
        parts = rows.split(step, 1)
        low, high = (torch.stack([f(part) for part in parts]) for f in (torch.amin, torch.amax))
        lines.append(torch.where(low == high, low, PARTIAL))
    return torch.stack(lines)
