"""What the gathering CPU kernel needs of a layout, worked out once and kept."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attnctl.kernels.blocking import list_blocks, mark_blocks, number_tiles, unpack_tiles
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.layout_parts import marks
from attnctl.kernels.rules import Bitmask, Rule

KEPT_PLANS = 32
TILES_AT_ONCE = 256


@dataclass(frozen=True)
class Group:
    """Query blocks, of any batch item and head, with equally long lists.

    Attributes:
        rows: ``(n,)`` query blocks, counted through all items and heads.
        blocks: ``(n, full + partial)`` key blocks, counted through all items and heads.
        tiles: ``(n, partial)`` bias tile of each partial block.
    """

    rows: Tensor
    blocks: Tensor
    tiles: Tensor


@dataclass(frozen=True)
class GatherPlan:
    """Groups of query blocks, and the masks of partial blocks as numbers that are added.

    Attributes:
        groups: Every query block is in one.
        bias: ``(tiles, q_block * k_block)``: 0 where allowed, ``-inf`` elsewhere.
    """

    groups: tuple[Group, ...]
    bias: Tensor


@lru_cache(maxsize=KEPT_PLANS)
def make_plan(layout: BlockLayout, batch: int, heads: int, dtype: torch.dtype) -> GatherPlan:
    """Work out the plan of a layout for tensors of ``batch`` items and ``heads`` heads.

    A ragged last block that is full becomes a partial one that hides its padding.
    """
    full, numbers, tiles = _sort_out(layout)
    full_count, full_index = list_blocks(full)
    partial_count, partial_index = list_blocks(numbers >= 0)
    tile_of = numbers.gather(-1, partial_index.long())

    def flat(lists: Tensor) -> Tensor:
        return lists.long().expand(batch, heads, *lists.shape[2:]).flatten(0, 2)

    index, hidden, tile = flat(full_index), flat(partial_index), flat(tile_of)
    kinds = torch.stack((flat(full_count), flat(partial_count)), 1)
    kinds, member = kinds.unique(dim=0, return_inverse=True)
    sizes = member.bincount(minlength=len(kinds)).tolist()
    groups: list[Group] = []
    for rows, counts in zip(member.argsort(stable=True).split(sizes), kinds.tolist(), strict=True):
        first = rows // layout.q_blocks * layout.k_blocks
        blocks = torch.cat((index[rows, : counts[0]], hidden[rows, : counts[1]]), 1)
        groups.append(Group(rows, blocks + first[:, None], tile[rows, : counts[1]]))
    bias = torch.zeros(tiles.shape, dtype=dtype).masked_fill_(~tiles, -torch.inf)
    return GatherPlan(tuple(groups), bias.flatten(1))


def _sort_out(layout: BlockLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Return the full blocks, the tile of each other listed block or -1, and the tiles."""
    full = marks(layout, "full")
    tail = layout.k_tokens % layout.k_block
    rule = layout.rule
    if isinstance(rule, Bitmask):
        lists = (layout.partial_count, layout.partial_index)
        numbers, tiles = mark_blocks(*lists, layout.k_blocks, rule.tile_of), rule.tiles
    elif rule is not None:
        numbers, tiles = _cut_tiles(layout, rule)
    else:
        numbers = torch.full(full.shape, -1, dtype=torch.int32)
        tiles = torch.zeros(0, layout.q_block, layout.k_block, dtype=torch.bool)
    if tail:
        whole = torch.arange(layout.k_block) < tail
        tiles = torch.cat((tiles, whole.expand(1, layout.q_block, -1)))
        ragged = full[..., -1]
        numbers[..., -1] = torch.where(ragged, len(tiles) - 1, numbers[..., -1])
        full = full.clone()
        full[..., -1] = False
    return full, numbers, tiles


def _cut_tiles(layout: BlockLayout, rule: Rule) -> tuple[Tensor, Tensor]:
    """Expand a rule in its partial blocks; equal tiles are kept once."""
    assert not isinstance(rule, Bitmask)  # those have tiles
    listed = marks(layout, "partial")
    places = listed.nonzero()
    known: dict[bytes, int] = {}
    found: list[Tensor] = []
    for part in places.split(TILES_AT_ONCE):
        queries = part[:, 2, None] * layout.q_block + torch.arange(layout.q_block)
        keys = part[:, 3, None] * layout.k_block + torch.arange(layout.k_block)
        tiles = rule.allowed(queries[:, :, None], keys[:, None])
        found.append(number_tiles(tiles & (keys < layout.k_tokens)[:, None], known))
    numbers = torch.full(listed.shape, -1, dtype=torch.int32)
    numbers[listed] = torch.cat(found)
    return numbers, unpack_tiles(known, layout.q_block, layout.k_block)
