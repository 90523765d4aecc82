"""Sort the blocks of an attention mask into empty, full and partial ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STRIP_PAIRS = 2**20  # pairs looked at together: what a cache holds
EIGHT_TRUE = 0x0101010101010101

Strip = Callable[[int, int], Tensor]  # query tokens start, stop -> bool (B | 1, H | 1, rows, K)


@dataclass(frozen=True)
class BlockLists:
    """Lists of blocks a query block attends to; see `BlockLayout` for the shapes."""

    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor
    tiles: Tensor
    tile_of: Tensor


class Sizes(NamedTuple):
    """Sizes of a layout: tokens in a block, and tokens."""

    q_block: int
    k_block: int
    q_tokens: int
    k_tokens: int


def sort_blocks(strip: Strip, sizes: Sizes, *, keep_tiles: bool) -> BlockLists:
    """Go through a mask in strips of query rows and list its full and partial blocks.

    A block counts as full if every pair of real tokens in it is allowed: the padding of a ragged
    last block does not matter.

    Args:
        strip: Gives the mask of some query tokens.
        sizes: Block sizes and tokens.
        keep_tiles: Collect the element masks of partial blocks; equal ones are kept once.
    """
    q_block, k_block, q_tokens, k_tokens = sizes
    q_blocks = -(-q_tokens // q_block)
    some_parts: list[Tensor] = []
    every_parts: list[Tensor] = []
    number_parts: list[Tensor] = []
    known: dict[bytes, int] = {}
    at_once = max(1, STRIP_PAIRS // (q_block * max(k_tokens, 1)))
    for start in range(0, q_blocks, at_once):
        stop = min(start + at_once, q_blocks)
        mask = strip(start * q_block, min(stop * q_block, q_tokens))
        padding = (0, -k_tokens % k_block, 0, (stop - start) * q_block - mask.shape[-2])
        tiles = _as_blocks(F.pad(mask, padding), q_block, k_block)
        some = _words(tiles).amax((3, 5)) > 0
        if any(padding):
            mask = F.pad(mask, padding, value=True)
        every = _words(_as_blocks(mask, q_block, k_block)).amin((3, 5)) == EIGHT_TRUE
        some_parts.append(some)
        every_parts.append(every)
        if keep_tiles:
            partial = some & ~every
            numbers = torch.zeros(partial.shape, dtype=torch.int32)
            numbers[partial] = number_tiles(tiles.transpose(-3, -2)[partial], known)
            number_parts.append(numbers)
    some, every = torch.cat(some_parts, 2), torch.cat(every_parts, 2)
    partial_count, partial_index = list_blocks(some & ~every)
    tile_of = torch.zeros_like(partial_index)
    if keep_tiles:
        tile_of = torch.cat(number_parts, 2).gather(-1, partial_index.long())
    return BlockLists(
        *list_blocks(every),
        partial_count,
        partial_index,
        unpack_tiles(known, q_block, k_block),
        tile_of,
    )


def list_blocks(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a choice of key blocks into counts and lists.

    Args:
        chosen: bool ``(B | 1, H | 1, query blocks, key blocks)``.

    Returns:
        count int32 ``(B | 1, H | 1, query blocks)`` and index int32 ``(..., longest)``: the chosen
        key blocks in rising order, then zeros.
    """
    count = chosen.sum(-1, dtype=torch.int32)
    longest = int(count.max()) if count.numel() else 0
    order = chosen.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., :longest]
    valid = torch.arange(longest, device=chosen.device) < count.unsqueeze(-1)
    return count, torch.where(valid, order, 0).to(torch.int32).contiguous()


def list_known(some: Tensor, every: Tensor, q_block: int, k_block: int) -> BlockLists:
    """List blocks that are known to hold some, or only, allowed pairs; a rule gives the pairs."""
    partial_count, partial_index = list_blocks(some & ~every)
    no_tiles = torch.zeros(0, q_block, k_block, dtype=torch.bool)
    lists = (*list_blocks(every), partial_count, partial_index)
    return BlockLists(*lists, no_tiles, torch.zeros_like(partial_index))


def mark_blocks(
    count: Tensor, index: Tensor, k_blocks: int, values: Tensor | None = None
) -> Tensor:
    """Undo `list_blocks`: int32 ``(B | 1, H | 1, query blocks, key blocks)``.

    A listed block holds 1, or its entry of ``values``; any other holds 0, or -1 with ``values``.
    """
    valid = torch.arange(index.shape[-1], device=index.device) < count.unsqueeze(-1)
    target = torch.where(valid, index, k_blocks).long()
    empty = 0 if values is None else -1
    grid = torch.full((*count.shape, k_blocks + 1), empty, dtype=torch.int32, device=index.device)
    source = torch.ones_like(index) if values is None else values
    return grid.scatter_(-1, target, source)[..., :k_blocks]


def check_lists(name: str, count: Tensor, index: Tensor, q_blocks: int, k_blocks: int) -> None:
    """Refuse lists of blocks that do not fit the layout; ``name`` is for the message.

    Raises:
        ValueError: A shape, dtype, count or index is wrong, a block is named twice, or a list does
            not rise.
    """
    if count.ndim != 3 or index.shape[:3] != count.shape or count.shape[2] != q_blocks:
        raise ValueError(
            f"{name}_count {tuple(count.shape)} and {name}_index {tuple(index.shape)} must be "
            f"(B | 1, H | 1, {q_blocks} query blocks) and the same with a last axis"
        )
    if count.dtype != torch.int32 or index.dtype != torch.int32:
        raise ValueError(f"{name}_count and {name}_index must be int32")
    if count.numel() and (int(count.min()) < 0 or int(count.max()) > index.shape[-1]):
        raise ValueError(f"{name}_count must lie in 0 to {index.shape[-1]}")
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= k_blocks):
        raise ValueError(f"{name}_index must lie in 0 to {k_blocks - 1}")
    if not torch.equal(mark_blocks(count, index, k_blocks).sum(-1, dtype=torch.int32), count):
        raise ValueError(f"{name}_index names a block twice")
    listed = torch.arange(1, max(1, index.shape[-1]), device=index.device) < count.unsqueeze(-1)
    if bool((listed & (index.diff(dim=-1) < 0)).any()):
        raise ValueError(f"{name}_index must list the blocks of a row in rising order")


def check_order(order: Tensor, q_tokens: int, k_tokens: int) -> None:
    """Refuse an order that is no permutation shared by queries and keys.

    Raises:
        ValueError: It has another size, or misses a token.
    """
    if q_tokens != k_tokens or order.shape != (q_tokens,):
        raise ValueError(
            f"order has shape {tuple(order.shape)} for {q_tokens} queries and {k_tokens} keys; "
            "it must be one permutation of tokens that queries and keys share"
        )
    if not torch.equal(order.sort().values, torch.arange(q_tokens, device=order.device)):
        raise ValueError(f"order must hold each of 0 to {q_tokens - 1} once")


def _as_blocks(mask: Tensor, q_block: int, k_block: int) -> Tensor:
    """View ``(B, H, rows, K)`` as ``(B, H, query blocks, q_block, key blocks, k_block)``."""
    batch, heads, rows, keys = mask.shape
    return mask.reshape(batch, heads, rows // q_block, q_block, keys // k_block, k_block)


def _words(tiles: Tensor) -> Tensor:
    """View eight bools as one int64, which is reduced in a fraction of the time."""
    return tiles.contiguous().view(torch.int64)


def number_tiles(tiles: Tensor, known: dict[bytes, int]) -> Tensor:
    """Number tiles ``(n, q_block, k_block)`` bool; ``known`` keeps each different one, packed."""
    packed = np.packbits(tiles.flatten(1).numpy(), axis=1)
    numbers = [known.setdefault(row.tobytes(), len(known)) for row in packed]
    return torch.tensor(numbers, dtype=torch.int32)


def unpack_tiles(known: dict[bytes, int], q_block: int, k_block: int) -> Tensor:
    """Return the different tiles that `number_tiles` met, in the order of their numbers."""
    size = q_block * k_block
    packed = np.frombuffer(b"".join(known), dtype=np.uint8).reshape(len(known), -(-size // 8))
    bits = np.unpackbits(packed, axis=1, count=size).astype(np.bool_)
    return torch.from_numpy(bits).reshape(len(known), q_block, k_block)
