"""DiTCtrl: overlapping tiles of a long clip, and masks of what one of them shares with the next.

Source: Cai et al., "DiTCtrl", CVPR 2025, arXiv 2412.18597, and its official code. Where the two
differ, the code counts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of query, key, value, ``(B, H, tokens, D)`` each."""

Blend = tuple[int, float]
"""Prompts ``k`` and ``k + 1`` with the weights ``1 - w`` and ``w``: ``(k, w)``."""

_EPS = 1e-6


def tile_prompts(prompts: int, transitions: int, longer_middle: int = 0) -> tuple[Blend, ...]:
    """Tell what each tile shows.

    Args:
        prompts: K, from 1.
        transitions: m, tiles between two prompts that blend them, from 0.
        longer_middle: Further tiles of each prompt that is neither the first nor the last, from 0.

    Returns:
        ``(k, w)`` for each of the ``K + m (K - 1) + longer_middle (K - 2)`` tiles (one if K is 1).
        A tile of a prompt has ``w = 0``; transition ``r`` has ``w = (r + 1) / (m + 1)``.

    Source: section 3.3 and the code.
    """
    found: list[Blend] = []
    for k in range(prompts):
        is_between = 0 < k < prompts - 1
        found += [(k, 0.0)] * (1 + (longer_middle if is_between else 0))
        if k < prompts - 1:
            found += [(k, (r + 1) / (transitions + 1)) for r in range(transitions)]
    return tuple(found)


def blend_prompts(embeddings: Tensor, tiles: Sequence[Blend]) -> Tensor:
    """Text embeddings of tiles: ``(K, T, D)`` to ``(tiles, T, D)``.

    Equal prompts and tiles of one prompt give exactly that prompt's embeddings.

    Args:
        embeddings: Of the prompts.
        tiles: From :func:`tile_prompts`.
    """
    last = len(embeddings) - 1
    found = [torch.lerp(embeddings[k], embeddings[min(k + 1, last)], w) for k, w in tiles]
    return torch.stack(found)


def tile_starts(tiles: int, length: int, overlap: int) -> tuple[int, ...]:
    """First frames of tiles that overlap.

    Args:
        tiles: How many, from 1.
        length: Frames of a tile.
        overlap: Frames that neighbours have in common, from 0 to ``length - 1``.

    Source: the code; tile ``j`` covers frames ``[j (L - o), j (L - o) + L)``.
    """
    return tuple(j * (length - overlap) for j in range(tiles))


def blend_window(length: int) -> Tensor:
    """Weights of the frames of a tile: ``(length,)``, fp64, positive, symmetric, highest inside.

    Source: the code; ``u = (p + 0.5) * 2 / L`` and ``w = min(u, 2 - u)``.
    """
    rising = (torch.arange(length, dtype=torch.float64) + 0.5) * 2 / length
    return torch.minimum(rising, 2 - rising)


def cut_tiles(long: Tensor, starts: Sequence[int], length: int, axis: int) -> Tensor:
    """Copy tiles out of a long clip.

    Args:
        long: ``(1, ...)``, frames on ``axis``.
        starts: First frame of each tile; one may stand there several times.
        length: Frames of a tile.
        axis: Of the frames.

    Returns:
        ``(tiles, ...)``.
    """
    return torch.cat([long.narrow(axis, start, length) for start in starts])


def place_tiles(tiles: Tensor, starts: Sequence[int], axis: int) -> Tensor:
    """Undo :func:`cut_tiles` exactly; where tiles differ, a later one wins.

    Args:
        tiles: ``(tiles, ...)``.
        starts: First frame of each; together they cover the clip.
        axis: Of the frames.
    """
    long = _empty(tiles, starts, axis)
    for tile, start in zip(tiles.split(1), starts, strict=True):
        long.narrow(axis, start, tile.shape[axis]).copy_(tile)
    return long


def blend_tiles(tiles: Tensor, starts: Sequence[int], axis: int) -> Tensor:
    """Join tiles to a long clip: a weighted mean where they overlap.

    The weights of a frame sum to one, so what is blended may be the clean clip (as in the paper)
    or, with the same result, any prediction that is affine in it at one noise level.

    Args:
        tiles: ``(tiles, ...)``, floating point.
        starts: First frame of each; one that stands there twice counts twice.
        axis: Of the frames.

    Returns:
        ``(1, ...)``; computed in fp32 or wider, in the dtype of ``tiles``.

    Source: section 3.3 and the code, with :func:`blend_window`.
    """
    dtype = torch.promote_types(tiles.dtype, torch.float32)
    length = tiles.shape[axis]
    shape = [length if a == axis else 1 for a in range(tiles.dim())]
    window = blend_window(length).to(tiles.device, dtype).view(shape)
    total = _empty(tiles.to(dtype), starts, axis).zero_()
    shape[axis] = total.shape[axis]
    weight = total.new_zeros(shape)
    for tile, start in zip(tiles.split(1), starts, strict=True):
        total.narrow(axis, start, length).add_(window * tile)
        weight.narrow(axis, start, length).add_(window)
    return (total / weight).to(tiles.dtype)


def foreground(word_map: Tensor, threshold: float) -> Tensor:
    """Mask of the tokens where words look, each frame scaled to [0, 1] by itself.

    Args:
        word_map: Attention to the words, ``(F, h, w)``.
        threshold: Least scaled value of the foreground; at 0 or below everything is foreground.

    Returns:
        bool ``(F * h * w,)``.

    Source: the code, threshold 0.3.
    """
    low, high = word_map.amin((1, 2), keepdim=True), word_map.amax((1, 2), keepdim=True)
    return ((word_map - low) / (high - low + _EPS) >= threshold).flatten()


def masked_shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    image: slice,
    source_mask: Tensor,
    target_mask: Tensor,
    attend: Attend,
) -> Tensor:
    """Attention of a target to a source: foreground sees foreground, background the rest.

    Args:
        query: Of the target, ``(B, H, tokens, D)``.
        key: Of the source, same tokens.
        value: Of the source, same tokens.
        image: Positions of the N image tokens; the others are text, which sees and is seen by all.
        source_mask: bool ``(N,)``, foreground of the source.
        target_mask: bool ``(N,)``, foreground of the target.
        attend: Attention of query, key, value.

    Returns:
        ``(B, H, tokens, D)``. A part that finds no key at all sees the whole source.

    Source: section 3.2 and the code, where both parts are computed for all tokens and picked from.
    """
    is_text = torch.ones(query.shape[2], dtype=torch.bool, device=query.device)
    is_text[image] = False
    out = torch.empty_like(query[..., : value.shape[-1]])
    for is_foreground in (True, False):
        rows, keys = torch.zeros_like(is_text), is_text.clone()
        rows[image] = target_mask == is_foreground
        keys[image] = source_mask == is_foreground
        _attend_part(out, (query, key, value), rows, keys, attend)
    _attend_part(out, (query, key, value), is_text, torch.ones_like(is_text), attend)
    return out


def _attend_part(
    out: Tensor,
    tensors: tuple[Tensor, Tensor, Tensor],
    rows: Tensor,
    keys: Tensor,
    attend: Attend,
) -> None:
    """Write attention of queries ``rows`` to ``keys``, bool ``(tokens,)`` each, into ``out``."""
    if not bool(rows.any()):
        return
    query, key, value = tensors
    if bool(keys.any()) and not bool(keys.all()):
        key, value = key[:, :, keys], value[:, :, keys]
    out[:, :, rows] = attend(query[:, :, rows], key, value).to(out)


def _empty(tiles: Tensor, starts: Sequence[int], axis: int) -> Tensor:
    """Room for the clip that tiles cover, ``(1, ...)``."""
    shape = list(tiles.shape)
    shape[0], shape[axis] = 1, max(starts) + tiles.shape[axis]
    return tiles.new_empty(shape)
