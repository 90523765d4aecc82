"""Block-sparse attention with torch's compiled FlexAttention."""

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.kernels.blocking import mark_blocks
from attnctl.kernels.cpu_gather import run_cpu_gather
from attnctl.kernels.kernel import HALF_DTYPES, Kernel, Request
from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import default_scale
from attnctl.kernels.rules import Band, Bitmask, SameId

VARIANTS = 256  # compiled forms that are kept
KEPT_MASKS = 16  # block masks that are kept, one a layout
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_masks: OrderedDict[BlockLayout, Any] = OrderedDict()


def run_flex(
    query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Run FlexAttention on the layout's lists; see `Kernel.run` for the shapes.

    On a CPU the compiled form has no log-sum-exp; it is computed apart.
    """
    with torch.no_grad():
        factor = default_scale(query, scale)
        tensors = (query, key, value)
        if layout.order is not None:
            tensors = tuple(tensor[:, :, layout.order] for tensor in tensors)
        out, lse = _run_in_order(tensors, layout, factor)
        if lse is None:
            lse = run_cpu_gather(query, key, value[..., :8], layout, factor)[1]
        elif layout.order is not None:
            lse = lse[:, :, layout.order.argsort()]
        if layout.order is not None:
            out = out[:, :, layout.order.argsort()]
        return out, lse


def block_mask(layout: BlockLayout) -> Any:
    """Turn a layout into a ``torch.nn.attention.flex_attention.BlockMask``, in its own order.

    The latest masks are kept, since FlexAttention compiles again for a new mask function.
    """
    kept = _masks.pop(layout, None)
    if kept is None or kept.kv_num_blocks.device != layout.full_count.device:
        kept = _make_block_mask(layout)
    _masks[layout] = kept
    while len(_masks) > KEPT_MASKS:
        _masks.popitem(last=False)
    return kept


def _make_block_mask(layout: BlockLayout) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    def padded(index: Tensor) -> Tensor:
        return F.pad(index, (0, layout.k_blocks - index.shape[-1])).contiguous()

    return BlockMask.from_kv_blocks(
        layout.partial_count.clone(),
        padded(layout.partial_index),
        layout.full_count.clone(),
        padded(layout.full_index),
        BLOCK_SIZE=(layout.q_block, layout.k_block),
        mask_mod=_mask_mod(layout),
        seq_lengths=(layout.q_tokens, layout.k_tokens),
        compute_q_blocks=False,
    )


def _mask_mod(layout: BlockLayout) -> MaskMod:
    """Return the rule of the partial blocks in FlexAttention's form."""
    rule = layout.rule
    if isinstance(rule, Band):
        half_width, text, group = rule.half_width, rule.text, rule.group

        def band(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # Text sits before the groups; the shift keeps the division off negative numbers.
            near = (query - text + group * text) // group - (key - text + group * text) // group
            return (near.abs() <= half_width) | (query < text) | (key < text)

        return band
    if isinstance(rule, SameId):
        query_ids, key_ids = rule.query_ids, rule.key_ids

        def same_id(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return query_ids[query] == key_ids[key]

        return same_id
    if isinstance(rule, Bitmask):
        return _tile_mod(layout, rule)

    def everything(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= 0) & (key >= 0)

    return everything


def _tile_mod(layout: BlockLayout, rule: Bitmask) -> MaskMod:
    lists = (layout.partial_count, layout.partial_index)
    numbers = mark_blocks(*lists, layout.k_blocks, rule.tile_of).clamp(min=0)
    tiles, q_block, k_block = rule.tiles, layout.q_block, layout.k_block
    batch_step, head_step = (int(size > 1) for size in numbers.shape[:2])

    def tile(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        block = (batch * batch_step, head * head_step, query // q_block, key // k_block)
        return tiles[numbers[block], query % q_block, key % k_block]

    return tile


def _run_in_order(
    tensors: tuple[Tensor, ...], layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor | None]:
    """Run on ``(query, key, value)`` in the layout's order; no log-sum-exp on a CPU."""
    from torch.nn.attention.flex_attention import AuxRequest

    mask = block_mask(layout)
    flex = _compiled()
    # A variant is a shape, dtype and rule. Past the limit, torch would refuse to compile.
    with torch._dynamo.config.patch(recompile_limit=VARIANTS):
        if not tensors[0].is_cuda:
            return flex(*tensors, block_mask=mask, scale=scale), None
        options = {"BLOCK_M": min(layout.q_block, 128), "BLOCK_N": min(layout.k_block, 64)}
        aux = AuxRequest(lse=True)
        out, found = flex(
            *tensors,
            block_mask=mask,
            scale=scale,
            return_aux=aux,
            kernel_options=options,
        )
        return out, found.lse


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Dynamic shapes fail to compile on a CPU when the mask function reads tensors (torch 2.13).
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _why_missing() -> str | None:
    if torch.cuda.is_available():
        return None
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no CUDA device, and no C++ compiler (g++) for its CPU form"
    return None


def _widths(head_width: int, value_width: int) -> bool:
    return head_width % 8 == 0 and head_width >= 16 and value_width >= 16


def is_tile(q_block: int, k_block: int) -> bool:
    """Say whether a GPU kernel can work in these blocks: powers of two from 16 on."""
    return all(size >= 16 and size & (size - 1) == 0 for size in (q_block, k_block))


def _on_cuda(request: Request) -> bool:
    return request.device == "cuda"


FLEX = Kernel(
    name="flex",
    summary="block-sparse: torch's compiled FlexAttention on CUDA; on a CPU only if forced",
    run=run_flex,
    devices=frozenset({"cpu", "cuda"}),
    dtypes=HALF_DTYPES | {torch.float32},
    head_width=_widths,
    mask=frozenset({"block"}),
    lse=True,
    gqa=False,
    exact=True,
    backward="none",
    why_missing=_why_missing,
    blocks=is_tile,
    suits=_on_cuda,
)
