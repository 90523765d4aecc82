"""Block-sparse attention on a CPU: gather the listed key blocks, then batched products."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.kernels.gather_plan import make_plan
from attnctl.kernels.kernel import FLOAT_DTYPES, Kernel, Request, any_width
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import default_scale

CACHED_ELEMENTS = 2**20  # scores and gathered keys of one piece of work: what a core's cache holds
RECORDED_ELEMENTS = 2**24  # with gradients everything is kept anyway: few large pieces
LEAST_EXPONENT = -80.0
DENSE_FROM = 0.9  # share of computed blocks from which an expanded mask is as fast


def run_cpu_gather(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Attend to the listed blocks; see `Kernel.run` for the shapes.

    Query blocks with equally long lists go together. Half precision is computed in float32.
    """
    batch, heads, _, width = query.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    queries = _as_blocks(query.to(wide), layout, layout.q_block)
    keys = _as_blocks(key.to(wide), layout, layout.k_block).flatten(1)
    values = _as_blocks(value.to(wide), layout, layout.k_block).flatten(1)
    plan = make_plan(layout, batch, heads, wide)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    limit = RECORDED_ELEMENTS if recorded else CACHED_ELEMENTS * torch.get_num_threads()
    factor = default_scale(query, scale)
    out = queries.new_empty(*queries.shape[:2], value.shape[-1])
    lse = queries.new_empty(queries.shape[:2])
    for group in plan.groups:
        count = group.blocks.shape[1] * layout.k_block
        each = count * (layout.q_block + width + value.shape[-1])
        rows = max(1, limit // max(each, 1))
        for piece, blocks, tiles in zip(
            group.rows.split(rows), group.blocks.split(rows), group.tiles.split(rows), strict=True
        ):
            taken = blocks.flatten()
            piece_out, piece_lse = _attend(
                queries.index_select(0, piece).mul_(factor),
                keys.index_select(0, taken).view(piece.numel(), count, width),
                values.index_select(0, taken).view(piece.numel(), count, value.shape[-1]),
                plan.bias.index_select(0, tiles.flatten()).view(*tiles.shape, layout.q_block, -1)
                if tiles.shape[1]
                else None,
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
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attend in each row on its own: query ``(rows, q_block, D)``, key ``(rows, keys, D)``.

    ``bias`` ``(rows, partial blocks, q_block, k_block)`` belongs to the last of the keys. The
    updates in place are ones that autograd allows.
    """
    if key.shape[1] == 0:
        out = query.new_zeros(*query.shape[:2], value.shape[-1])
        return out, query.new_full(query.shape[:2], -torch.inf)
    scores = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        _, partial, q_block, k_block = bias.shape
        blocks = scores.view(scores.shape[0], q_block, -1, k_block)
        blocks[:, :, blocks.shape[2] - partial :].add_(bias.transpose(1, 2))
    top = scores.detach().amax(-1, keepdim=True)
    empty = None
    if bias is not None:
        empty = top == -torch.inf
        top = top.masked_fill(empty, 0.0)
    # exp is up to a hundred times slower where it underflows; e^-80 is lost in any sum from 1.
    weights = scores.sub_(top).clamp_(min=LEAST_EXPONENT).exp_()
    total = weights.sum(-1, keepdim=True)
    out, lse = torch.bmm(weights, value) / total, top + total.log()
    if empty is not None:
        out, lse = out.masked_fill(empty, 0.0), lse.masked_fill(empty, -torch.inf)
    return out, lse.squeeze(-1)


def _as_blocks(tokens: Tensor, layout: BlockLayout, block: int) -> Tensor:
    """Turn ``(B, H, N, D)`` into ``(B * H * blocks, block, D)``, padded with zeros."""
    if layout.order is not None:
        tokens = tokens[:, :, layout.order]
    if tokens.shape[2] % block:
        tokens = F.pad(tokens, (0, 0, 0, -tokens.shape[2] % block))
    return tokens.reshape(-1, block, tokens.shape[-1])


def _is_sparse(request: Request) -> bool:
    return request.layout is None or request.layout.density < DENSE_FROM


CPU_GATHER = Kernel(
    name="cpu-gather",
    summary="block-sparse: gathers the listed key blocks, for a CPU; every gradient",
    run=run_cpu_gather,
    devices=frozenset({"cpu"}),
    dtypes=FLOAT_DTYPES,
    head_width=any_width,
    mask=frozenset({"block"}),
    lse=True,
    gqa=False,
    exact=True,
    backward="out+lse",
    suits=_is_sparse,
)
