"""Sparse masks by name: which image tokens see each other, given a grid and a share of the keys.

Tokens that are no part of the image (text, reference tokens) see all and are seen by all.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnctl.calls import Layout
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.kernels import Band, BlockLayout, predict_layout
from attnctl.kernels.layout import Pattern
from attnctl.kernels.patterns import (
    Grid,
    neighbourhood,
    place_order,
    radial,
    raster_band,
    strided,
    tile_order,
    tile_window,
)

PREDICTED = "predicted"
# A pattern over the image tokens alone, and an order that packs them; a band counts in that order.
Builder = Callable[[Grid, float], tuple[Pattern | Band, Tensor | None]]


def _raster_band(grid: Grid, share: float) -> tuple[Band, None]:
    return raster_band(math.prod(grid), share), None


def _frame_band(grid: Grid, share: float) -> tuple[Band, Tensor | None]:
    frames, place = grid[0], grid[1] * grid[2]
    band = raster_band(place, share)
    if frames == 1:
        return band, None
    return replace(band, group=frames), place_order(frames, place)


def _neighbourhood(grid: Grid, share: float) -> tuple[Pattern, Tensor]:
    return neighbourhood(grid, _window(grid, share)), tile_order(grid, tile_of(grid))


def _tiles(grid: Grid, share: float) -> tuple[Pattern, Tensor]:
    tile = tile_of(grid)
    frames, height, width = (-(-size // own) for size, own in zip(grid, tile, strict=True))
    window = _window((frames, height, width), share)
    return tile_window(grid, tile, window), tile_order(grid, tile)


def _strided(grid: Grid, share: float) -> tuple[Pattern, None]:
    half = math.floor(math.prod(grid) * share / 2) // 2
    return strided(max(1, round(2 / share)), half), None


def _radial(grid: Grid, share: float) -> tuple[Pattern, None]:
    return radial(grid, least=64), None


_masks: dict[str, Builder] = {
    "raster-band": _raster_band,
    "frame-band": _frame_band,
    "neighbourhood": _neighbourhood,
    "tiles": _tiles,
    "strided": _strided,
    "radial": _radial,
}


def register_mask(name: str, builder: Builder) -> None:
    """Make a mask known by a name.

    Args:
        name: What a user writes for ``mask=``.
        builder: ``(grid, share) -> (pattern, order)``: grid in frames, height and width, share of
            the image keys that a query may see; the pattern is over image tokens, and ``order``
            permutes them so that those that see each other share blocks, or is None.

    Raises:
        SettingError: the name is taken.
    """
    if name in list_masks():
        raise SettingError(f"a mask named {name!r} exists already; choose another name")
    _masks[name] = builder


def list_masks() -> list[str]:
    """Names that ``mask=`` may have."""
    return sorted([*_masks, PREDICTED])


def tile_of(grid: Grid) -> Grid:
    """Tile of 64 image tokens: 8 by 8 in a picture, 4 by 4 in 4 frames of a clip."""
    return (1, 8, 8) if grid[0] == 1 else (4, 4, 4)


def image_grid(layout: Layout, path: str) -> Grid:
    """Grid of the image tokens that attend to each other.

    Raises:
        UnsupportedModelError: it does not account for them.
    """
    grid = (1, *layout.grid[1:]) if layout.fold == "frames" else layout.grid
    count = layout.image.stop - layout.image.start
    if math.prod(grid) != count:
        raise UnsupportedModelError(
            f"{path} has {count} image tokens, which are no grid of {grid[0]} x {grid[1]} x "
            f"{grid[2]}; select other sites with where="
        )
    return grid


def build_layout(
    mask: str, grid: Grid, first: int, tokens: int, share: float, block: int
) -> BlockLayout:
    """Cut a static mask into blocks.

    Where the mask has an order that packs it, the one of both layouts with fewer blocks is taken.

    Args:
        mask: A name of `list_masks`, but not ``predicted``.
        grid: Frames, height and width of the image tokens.
        first: Position of the first of them.
        tokens: All tokens; the others see all and are seen by all.
        share: Share of the image keys that a query sees, in (0, 1].
        block: Tokens in a block.
    """
    pattern, packed = _masks[mask](grid, share)
    count = math.prod(grid)
    if isinstance(pattern, Band):
        band = replace(pattern, text=tokens - count)
        order = whole_order(packed, first, count, tokens)
        return BlockLayout.from_pattern(band, tokens, q_block=block, k_block=block, order=order)

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        near = pattern(*((p - first).clamp(0, count - 1) for p in (queries, keys)))
        outside = [(p < first) | (p >= first + count) for p in (queries, keys)]
        return near | outside[0] | outside[1]

    orders = [None] if packed is None else [None, whole_order(packed, first, count, tokens)]
    layouts = [
        BlockLayout.from_pattern(allowed, tokens, q_block=block, k_block=block, order=order)
        for order in orders
    ]
    return min(layouts, key=lambda layout: layout.density)


def predicted_layout(
    query: Tensor, key: Tensor, grid: Grid, first: int, share: float, block: int, scale: float
) -> BlockLayout:
    """Guess from block means which blocks matter, tile by tile; see `predict_layout`.

    Every query keeps the keys that are no image tokens.
    """
    tokens, count = query.shape[2], math.prod(grid)
    packed = tile_order(grid, tile_of(grid))
    order = whole_order(packed, first, count, tokens)
    assert order is not None  # tiles are given
    order = order.to(query.device)
    layout = predict_layout(
        query[:, :, order],
        key[:, :, order],
        q_block=block,
        k_block=block,
        keep=share,
        always_keys=torch.arange(tokens, device=query.device) < tokens - count,
        scale=scale,
    )
    return replace(layout, order=order)


def whole_order(packed: Tensor | None, first: int, count: int, tokens: int) -> Tensor | None:
    """Order of all tokens: those outside the image in front, then the image's; None: as it is."""
    if packed is None and first + count == tokens:
        return None
    image = torch.arange(count) if packed is None else packed
    others = [*range(first), *range(first + count, tokens)]
    return torch.cat((torch.tensor(others, dtype=torch.long), first + image))


def column_mask(layout: BlockLayout, tokens: Tensor) -> Tensor:
    """Which queries see the keys ``tokens``: bool ``(B | 1, H | 1, Q, n)``, in token order."""
    back = None if layout.order is None else layout.order.argsort()
    places = tokens if back is None else back[tokens]
    strips = [layout.strip_mask(i, i + 1)[..., places] for i in range(layout.q_blocks)]
    mask = torch.cat(strips, dim=2)
    return mask if back is None else mask[:, :, back]


def _window(grid: Grid, share: float) -> Grid:
    """Sides of a window with about this share of the grid, equally narrowed along each axis."""
    axes = sum(size > 1 for size in grid)
    narrowed: Any = tuple(
        min(size, max(1, round(size * share ** (1 / max(axes, 1))))) for size in grid
    )
    return narrowed
