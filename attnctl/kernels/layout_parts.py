"""What a block layout computes from its lists: marks, partial tiles, pairs, a fingerprint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnctl.kernels.blocking import STRIP_PAIRS, mark_blocks
from attnctl.kernels.rules import Band, Bitmask, Rule, SameId

if TYPE_CHECKING:
    from attnctl.kernels.layout import BlockLayout


def marks(layout: BlockLayout, name: str) -> Tensor:
    """Mark the blocks of one list, ``"full"`` or ``"partial"``.

    Returns:
        bool ``(B | 1, H | 1, query blocks, key blocks)``.
    """
    count, index = getattr(layout, f"{name}_count"), getattr(layout, f"{name}_index")
    return mark_blocks(count, index, layout.k_blocks) > 0


def partial_tiles(layout: BlockLayout, rule: Rule, start: int, stop: int) -> Tensor:
    """Expand the partial blocks of query blocks ``start`` to ``stop``; True where allowed.

    Returns:
        bool ``(B | 1, H | 1, query blocks, q_block, key blocks, k_block)``.
    """
    if isinstance(rule, Bitmask):
        lists = (layout.partial_count, layout.partial_index, rule.tile_of)
        count, index, tile_of = (t[:, :, start:stop] for t in lists)
        numbers = mark_blocks(count, index, layout.k_blocks, tile_of)
        tiles = rule.tiles[numbers.clamp(min=0).long()] & (numbers >= 0)[..., None, None]
        return tiles.transpose(3, 4)
    device = layout.partial_index.device
    queries = torch.arange(start * layout.q_block, stop * layout.q_block, device=device)
    keys = torch.arange(layout.k_blocks * layout.k_block, device=device)
    tiles = rule.allowed(queries[:, None], keys[None])
    tiles = tiles.view(stop - start, layout.q_block, layout.k_blocks, layout.k_block)
    return tiles & marks(layout, "partial")[:, :, start:stop, None, :, None]


def kept_pairs(layout: BlockLayout) -> int:
    """Count the allowed pairs of real tokens, over all lists, from the listed blocks alone."""
    rows = _block_sizes(layout.q_blocks, layout.q_block, layout.q_tokens)
    columns = _block_sizes(layout.k_blocks, layout.k_block, layout.k_tokens)
    index = layout.full_index.cpu().long()
    listed = torch.arange(index.shape[-1]) < layout.full_count.cpu().unsqueeze(-1)
    full = int(((columns[index] * listed).sum(-1) * rows).sum())
    return full if layout.rule is None else full + _partial_pairs(layout, layout.rule)


def _block_sizes(blocks: int, size: int, tokens: int) -> Tensor:
    return (tokens - torch.arange(blocks) * size).clamp(max=size)


def _partial_pairs(layout: BlockLayout, rule: Rule) -> int:
    device = layout.partial_index.device
    entries = torch.arange(layout.partial_index.shape[-1], device=device)
    listed = (entries < layout.partial_count.unsqueeze(-1)).nonzero()
    kept = 0
    for some in listed.split(max(1, STRIP_PAIRS // (layout.q_block * layout.k_block))):
        at = some.unbind(1)
        starts = at[2] * layout.q_block, layout.partial_index[at] * layout.k_block
        queries = starts[0][:, None, None] + torch.arange(layout.q_block, device=device)[:, None]
        keys = starts[1][:, None, None] + torch.arange(layout.k_block, device=device)
        if isinstance(rule, Bitmask):
            allowed = rule.tiles[rule.tile_of[at].long()]
        else:
            allowed = rule.allowed(queries, keys)
        kept += int((allowed & (queries < layout.q_tokens) & (keys < layout.k_tokens)).sum())
    return kept


def parts_on(layout: BlockLayout, device: torch.device) -> dict[str, Tensor | Rule | None]:
    """Return the lists, rule and order of a layout on another device, by field."""
    rule = layout.rule
    if isinstance(rule, SameId):
        rule = SameId(rule.query_ids.to(device), rule.key_ids.to(device))
    elif isinstance(rule, Bitmask):
        rule = Bitmask(rule.tiles.to(device), rule.tile_of.to(device))
    return {
        "full_count": layout.full_count.to(device),
        "full_index": layout.full_index.to(device),
        "partial_count": layout.partial_count.to(device),
        "partial_index": layout.partial_index.to(device),
        "rule": rule,
        "order": None if layout.order is None else layout.order.to(device),
    }


def fingerprint(layout: BlockLayout) -> bytes:
    """Hash sizes, lists, rule and order: 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    rule = layout.rule
    plain = rule if isinstance(rule, Band) else type(rule).__name__
    sizes = (layout.q_block, layout.k_block, layout.q_tokens, layout.k_tokens, plain)
    digest.update(repr(sizes).encode())
    own = [layout.full_count, layout.full_index, layout.partial_count, layout.partial_index]
    own += [] if layout.order is None else [layout.order]
    own += [] if rule is None or isinstance(rule, Band) else list(vars(rule).values())
    for tensor in own:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


def require_bool(mask: Tensor) -> Tensor:
    """Return ``mask``.

    Raises:
        ValueError: It is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool (True = attend); got {mask.dtype}")
    return mask
