"""Sparse attention patterns: functions of token positions, and the orders that pack them.

A pattern takes integer positions of queries and keys that broadcast, and returns bool, True where
the pair is allowed; `BlockLayout.from_pattern` cuts it into blocks. A grid is ``(frames, height,
width)`` in cells, tokens in raster order, frames slowest.
"""

import math
from functools import reduce

import torch
from torch import Tensor

from attnctl.kernels.layout import Pattern
from attnctl.kernels.rules import Band

Grid = tuple[int, int, int]


def raster_band(tokens: int, share: float, text: int = 0) -> Band:
    """Allow keys near the query in raster order: ``h = floor(floor(tokens * share) / 2)``.

    Args:
        tokens: Image tokens N.
        share: Width of the band as a share of N, in (0, 1].
        text: Tokens before the image that take part in every pair.

    Source: Re-ttention, arXiv 2505.22918, its image mask.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie in (0, 1]")
    return Band(math.floor(tokens * share) // 2, text)


def frame_band(frame_tokens: int, half_width: int) -> Pattern:
    """Allow keys at nearly the same place of any frame: at most ``half_width`` tokens apart.

    Packed by `place_order` it is one band: ``Band(half_width, text, group=frames)``.

    Source: Re-ttention, arXiv 2505.22918, its video mask.
    """

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        return (queries % frame_tokens - keys % frame_tokens).abs() <= half_width

    return allowed


def neighbourhood(grid: Grid, window: Grid, stride: Grid = (1, 1, 1)) -> Pattern:
    """Allow a window around the query along each axis; at a border the window moves inwards.

    Args:
        grid: Cells along each axis; ``(1, height, width)`` for a picture.
        window: Cells of the window along each axis, 1 to the grid's size.
        stride: Queries in a run along each axis that share the window of the run's middle: 1
            gives each query its own, the window's size gives separate blocks.

    Source: Neighborhood Attention (CVPR 2023); Generalized Neighborhood Attention, arXiv
    2504.16922.
    """
    for size, width, step in zip(grid, window, stride, strict=True):
        if not 1 <= width <= size or not 1 <= step <= width:
            raise ValueError(
                f"window {window} must lie in 1 to the grid {grid}, and stride {stride} in 1 to "
                "the window, along each axis"
            )

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        near: list[Tensor] = []
        axes = zip(_cells(queries, grid), _cells(keys, grid), grid, window, stride, strict=True)
        for query, key, size, width, step in axes:
            middle = (query // step * step + step // 2).clamp(max=size - 1)
            start = (middle - width // 2).clamp(0, size - width)
            near.append((key >= start) & (key < start + width))
        return near[0] & near[1] & near[2]

    return allowed


def tile_window(grid: Grid, tile: Grid, window: Grid) -> Pattern:
    """Allow whole tiles around the query's tile; packed by `tile_order` no block is partial.

    Args:
        grid: Cells along each axis.
        tile: Cells of a tile along each axis.
        window: Tiles of the window along each axis; at a border the window moves inwards.

    Source: Sliding Tile Attention, arXiv 2502.04507.
    """
    tiles = _tiles(grid, tile)
    return _on_tiles(grid, tile, neighbourhood(tiles, _at_most(window, tiles)))


def strided(stride: int, half_width: int = 0) -> Pattern:
    """Allow every ``stride``-th key counted from the query, and keys at most ``half_width`` away.

    Source: Sparse Transformers, arXiv 1904.10509, its strided pattern in both directions.
    """
    if stride < 1 or half_width < 0:
        raise ValueError(f"stride={stride} must be at least 1, half_width={half_width} at least 0")

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        apart = (queries - keys).abs()
        return (apart % stride == 0) | (apart <= half_width)

    return allowed


def radial(grid: Grid, *, least: int = 1, first_frame: bool = False) -> Pattern:
    """Allow a diagonal band between frames that halves each time their distance doubles.

    Frames at most one apart see each other whole. A band narrower than ``least`` keeps that
    width, but only at every n-th distance, so that the share of pairs goes on falling.

    Args:
        grid: Cells along each axis.
        least: Least width of a band in tokens, at least 1: the block size of the kernel.
        first_frame: Whether all queries see the whole first frame.

    Source: Radial Attention, arXiv 2506.19852.
    """
    place = grid[1] * grid[2]
    if least < 1:
        raise ValueError(f"least={least} must be at least 1 token")

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        frames = (queries // place - keys // place).abs()
        apart = (queries % place - keys % place).abs()
        halvings = torch.log2(frames.clamp(min=1).float()).floor()
        width = place / 2**halvings
        every = (least / width).ceil().clamp(min=1)
        kept = (apart < width.clamp(min=least)) & (frames % every == 0)
        near = kept | (frames <= 1)
        return near | (keys < place) if first_frame else near

    return allowed


def sinks(tokens: int) -> Pattern:
    """Allow every query the first ``tokens`` keys."""

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        return (keys < tokens).expand(torch.broadcast_shapes(queries.shape, keys.shape))

    return allowed


def with_text(pattern: Pattern, text: int) -> Pattern:
    """Put ``text`` tokens before an image pattern; they see all tokens and are seen by all."""

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        image = pattern((queries - text).clamp(min=0), (keys - text).clamp(min=0))
        return image | (queries < text) | (keys < text)

    return allowed


def union(*patterns: Pattern) -> Pattern:
    """Allow what any of the patterns allows."""

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        return reduce(torch.logical_or, (pattern(queries, keys) for pattern in patterns))

    return allowed


def intersection(*patterns: Pattern) -> Pattern:
    """Allow what all of the patterns allow."""

    def allowed(queries: Tensor, keys: Tensor) -> Tensor:
        return reduce(torch.logical_and, (pattern(queries, keys) for pattern in patterns))

    return allowed


def place_order(frames: int, frame_tokens: int, text: int = 0) -> Tensor:
    """Order tokens by place, all frames of a place beside each other; text stays in front.

    Returns:
        ``(text + frames * frame_tokens,)``, for `BlockLayout` ``order``.
    """
    image = torch.arange(frames * frame_tokens).view(frames, frame_tokens).T.flatten()
    return torch.cat((torch.arange(text), image + text))


def tile_order(grid: Grid, tile: Grid, text: int = 0) -> Tensor:
    """Order tokens tile by tile, in raster order within each; text stays in front.

    Neighbours in all directions then share blocks: no block of a `tile_window` is partial, and a
    `neighbourhood` that is wider than a tile needs fewer blocks.

    Returns:
        ``(text + cells,)``, for `BlockLayout` ``order``.
    """
    positions = torch.arange(math.prod(grid))
    tiles = _tiles(grid, tile)
    number = _number([c // w for c, w in zip(_cells(positions, grid), tile, strict=True)], tiles)
    return torch.cat((torch.arange(text), number.argsort(stable=True) + text))


def _cells(positions: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    _, height, width = grid
    return positions // (height * width), positions // width % height, positions % width


def _number(cells: list[Tensor], grid: Grid) -> Tensor:
    return (cells[0] * grid[1] + cells[1]) * grid[2] + cells[2]


def _tiles(grid: Grid, tile: Grid) -> Grid:
    frames, height, width = (-(-size // own) for size, own in zip(grid, tile, strict=True))
    return frames, height, width


def _at_most(window: Grid, grid: Grid) -> Grid:
    frames, height, width = (min(pair) for pair in zip(window, grid, strict=True))
    return frames, height, width


def _on_tiles(grid: Grid, tile: Grid, pattern: Pattern) -> Pattern:
    tiles = _tiles(grid, tile)

    def numbers(positions: Tensor) -> Tensor:
        return _number([c // w for c, w in zip(_cells(positions, grid), tile, strict=True)], tiles)

    return lambda queries, keys: pattern(numbers(queries), numbers(keys))
