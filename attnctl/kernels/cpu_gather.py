"""Block-sparse attention on a CPU: gather the listed key blocks, then batched products."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.kernels.kernel import FLOAT_DTYPES, Kernel, Request
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import default_scale
from attnctl.kernels.rules import Bitmask

CACHED_ELEMENTS = 2**20  # scores and gathered keys of one piece of work: what a core's cache holds
RECORDED_ELEMENTS = 2**24  # with gradients everything is kept anyway: few large pieces
DENSE_FROM = 0.35  # share of computed blocks from which dense attention is faster


@dataclass(frozen=True)
class _Lists:
    """The lists of a layout, one row a query block of any batch item and head.

    Attributes:
        full: ``(rows, longest)`` key blocks that are computed whole.
        partial: ``(rows, longest)`` key blocks that follow the rule.
        tile: ``(rows, longest)`` tile of each partial block, or empty.
        offset: ``(rows,)`` first key block of the row's item and head.
        row: ``(rows,)`` query block within its item and head.
        kind: ``(rows, 3)`` full blocks, partial blocks, and whether the ragged last is among them.
    """

    full: Tensor
    partial: Tensor
    tile: Tensor
    offset: Tensor
    row: Tensor
    kind: Tensor


def run_cpu_gather(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attend to the listed blocks; see `Kernel.run` for the shapes.

    Query blocks with equally long lists go together. Half precision is computed in float32.
    """
    batch, heads, _, _ = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    queries = _as_blocks(query.to(wide), layout, layout.q_block)
    keys = _as_blocks(key.to(wide), layout, layout.k_block)
    values = _as_blocks(value.to(wide), layout, layout.k_block)
    lists = _flatten_lists(layout, batch, heads)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    limit = RECORDED_ELEMENTS if recorded else CACHED_ELEMENTS * torch.get_num_threads()
    factor = default_scale(query, scale)
    out = queries.new_empty(*queries.shape[:2], value.shape[-1])
    lse = queries.new_empty(queries.shape[:2])
    for rows, full, partial, ragged in _groups(lists):
        width = (full + partial) * layout.k_block
        each = width * (layout.q_block + query.shape[-1] + value.shape[-1])
        for piece in rows.split(max(1, limit // max(each, 1))):
            taken = torch.cat((lists.full[piece, :full], lists.partial[piece, :partial]), 1)
            blocks = (taken + lists.offset[piece, None]).flatten()
            hidden = _hidden(layout, lists, piece, taken, partial) if partial or ragged else None
            piece_out, piece_lse = _attend(
                queries.index_select(0, piece).mul_(factor),
                keys.index_select(0, blocks).view(piece.numel(), width, query.shape[-1]),
                values.index_select(0, blocks).view(piece.numel(), width, value.shape[-1]),
                hidden,
            )
            out.index_copy_(0, piece, piece_out)
            lse.index_copy_(0, piece, piece_lse)
    out = out.view(batch, heads, -1, value.shape[-1])[:, :, : layout.q_tokens]
    lse = lse.view(batch, heads, -1)[:, :, : layout.q_tokens]
    if layout.order is not None:
        original = layout.order.argsort()
        out, lse = out[:, :, original], lse[:, :, original]
    return out.to(query.dtype), lse


def _attend(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend in each row on its own: query ``(rows, q_block, D)``, key ``(rows, keys, D)``.

    ``hidden`` belongs to the last of the keys, as many as it has; True hides. The updates in
    place are ones that autograd allows.
    """
    if key.shape[1] == 0:
        out = query.new_zeros(*query.shape[:2], value.shape[-1])
        return out, query.new_full(query.shape[:2], -torch.inf)
    scores = torch.bmm(query, key.transpose(1, 2))
    if hidden is not None:
        scores[:, :, scores.shape[2] - hidden.shape[2] :].masked_fill_(hidden, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True)
    if hidden is not None:
        top.masked_fill_(top == -torch.inf, 0.0)
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    if hidden is None:
        return torch.bmm(weights, value) / total, (top + total.log()).squeeze(-1)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (top + total.log()).masked_fill(empty, -torch.inf)
    return torch.bmm(weights, value) / total, lse.squeeze(-1)


def _as_blocks(tokens: Tensor, layout: BlockLayout, block: int) -> Tensor:
    """Turn ``(B, H, N, D)`` into ``(B * H * blocks, block, D)``, padded with zeros."""
    if layout.order is not None:
        tokens = tokens[:, :, layout.order]
    if tokens.shape[2] % block:
        tokens = F.pad(tokens, (0, 0, 0, -tokens.shape[2] % block))
    return tokens.reshape(-1, block, tokens.shape[-1])


def _flatten_lists(layout: BlockLayout, batch: int, heads: int) -> _Lists:
    def flat(lists: Tensor) -> Tensor:
        return lists.long().expand(batch, heads, *lists.shape[2:]).flatten(0, 2)

    tile_of = layout.rule.tile_of if isinstance(layout.rule, Bitmask) else layout.partial_index
    full, partial = flat(layout.full_index), flat(layout.partial_index)
    full_count, partial_count = flat(layout.full_count), flat(layout.partial_count)
    last = torch.zeros_like(full_count, dtype=torch.bool)
    if layout.k_tokens % layout.k_block:
        for index, count in ((full, full_count), (partial, partial_count)):
            listed = torch.arange(index.shape[-1]) < count[:, None]
            last |= ((index == layout.k_blocks - 1) & listed).any(-1)
    places = torch.arange(batch * heads * layout.q_blocks)
    return _Lists(
        full=full,
        partial=partial,
        tile=flat(tile_of),
        offset=places // layout.q_blocks * layout.k_blocks,
        row=places % layout.q_blocks,
        kind=torch.stack((full_count, partial_count, last.long()), 1),
    )


def _groups(lists: _Lists) -> list[tuple[Tensor, int, int, int]]:
    """Collect the rows that have equally many blocks of either sort."""
    kinds, member = lists.kind.unique(dim=0, return_inverse=True)
    rows = member.argsort(stable=True).split(member.bincount(minlength=len(kinds)).tolist())
    return [(part, *kind) for part, kind in zip(rows, kinds.tolist(), strict=True)]


def _hidden(
    layout: BlockLayout, lists: _Lists, rows: Tensor, taken: Tensor, partial: int
) -> Tensor:
    """Say which pairs are not allowed; True hides.

    Returns:
        bool ``(rows, q_block | 1, keys)``, for all keys, or for those of partial blocks if no list
        has the ragged last block.
    """
    keys = taken[..., None] * layout.k_block + torch.arange(layout.k_block)
    beyond = keys.flatten(1)[:, None] >= layout.k_tokens
    if partial == 0 or layout.rule is None:
        return beyond
    if isinstance(layout.rule, Bitmask):
        tiles = layout.rule.tiles[lists.tile[rows, :partial]]
        allowed = tiles.transpose(1, 2).flatten(2)
    else:
        queries = lists.row[rows, None] * layout.q_block + torch.arange(layout.q_block)
        places = keys[:, taken.shape[1] - partial :].flatten(1)
        allowed = layout.rule.allowed(queries[:, :, None], places[:, None])
    if not bool(beyond.any()):
        return ~allowed
    hidden = beyond.expand(-1, layout.q_block, -1).clone()
    hidden[:, :, hidden.shape[2] - allowed.shape[2] :] |= ~allowed
    return hidden


def _any_width(head_width: int, value_width: int) -> bool:
    return head_width > 0 and value_width > 0


def _is_sparse(request: Request) -> bool:
    return request.layout is None or request.layout.density < DENSE_FROM


CPU_GATHER = Kernel(
    name="cpu-gather",
    summary="block-sparse: gathers the listed key blocks; fastest on a CPU below 35 percent",
    run=run_cpu_gather,
    devices=frozenset({"cpu"}),
    dtypes=FLOAT_DTYPES,
    head_width=_any_width,
    mask=frozenset({"block"}),
    lse=True,
    gqa=False,
    exact=True,
    backward="out+lse",
    suits=_is_sparse,
)
