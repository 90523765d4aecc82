"""Start the Triton kernels on torch tensors: strides, lists, rule and epilogue as arguments."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from attnctl.kernels.layout import BlockLayout
from attnctl.kernels.masks import default_scale
from attnctl.kernels.rules import Band, Bitmask, SameId
from attnctl.kernels.triton import forward
from attnctl.kernels.triton.record import HOPPER_SHARED, is_interpreted

LOG2_E = 1.4426950408889634
HALF_BYTES = 2
WIDE_TILE = 64  # keys at a time of heads wider than 64: more would spill registers
MOST_REGISTERS = 128  # of a thread, so that 16 warps fit on a multiprocessor

EpilogueKind = Literal["plain", "reuse", "refresh", "blend", "add"]


@dataclass(frozen=True)
class Epilogue:
    """What happens to the result before it is stored.

    Attributes:
        kind: ``"plain"``; ``"reuse"``: ``(share + shift) * out + extra``; ``"refresh"``: share is a
            log-sum-exp, the results are ``extra - exp(lse - share) * out`` and that factor;
            ``"blend"``: ``(1 - share) * out + share * extra``; ``"add"``: ``out + shift * extra``.
        extra: ``(B, H, Q, D)``, rows of the queries; None for ``"plain"``.
        share: float32 ``(B, H, Q)``, or ``(B, H)`` for ``"blend"``; None where it has no part.
        shift: A number.
        clamp: Keep ``share + shift`` at most 1.
    """

    kind: EpilogueKind = "plain"
    extra: Tensor | None = None
    share: Tensor | None = None
    shift: float = 0.0
    clamp: bool = False


def launch_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: BlockLayout,
    scale: float | None = None,
    epilogue: Epilogue | None = None,
) -> tuple[Tensor, Tensor]:
    """Run `block_sparse_forward` and return what it stores: out and lse, or as `Epilogue` says.

    Args:
        query: ``(B, H, Q, D)`` in any strides with a contiguous last axis; others are copied.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, D)``.
        layout: On the same device; blocks are powers of two, 16 to 128.
        scale: Factor on the scores; None means ``D ** -0.5``.
        epilogue: What to do before storing; None stores the attention itself.

    Returns:
        ``(B, H, Q, D)`` in the dtype of ``query``, laid out as ``(B, Q, H, D)`` in memory, and
        float32 ``(B, H, Q)``.
    """
    epilogue = epilogue or Epilogue()
    batch, heads, rows, width = query.shape
    query, scale = _positive_scale(query, default_scale(query, scale))
    query, key, value = (_rows_contiguous(tensor) for tensor in (query, key, value))
    out = torch.empty(batch, rows, heads, width, dtype=query.dtype, device=query.device)
    out = out.transpose(1, 2)
    lse = torch.empty(batch, heads, rows, dtype=torch.float32, device=query.device)
    extra = query if epilogue.extra is None else _rows_contiguous(epilogue.extra)
    share = lse if epilogue.share is None else epilogue.share.float().contiguous()
    programs = layout.program_order(batch, heads)
    tensors = (query, key, value, out, lse, *_lists(layout), programs, extra, share)
    strides = [n for t in (query, key, value, out, extra) for n in t.stride()[:3]]
    band = layout.rule if isinstance(layout.rule, Band) else Band(0)
    numbers = (
        *_list_strides(layout),
        *(heads, layout.q_blocks, layout.q_tokens, layout.k_tokens, scale * LOG2_E),
        *(min(band.half_width, layout.k_tokens // band.group + 1), band.text, band.group),
        epilogue.shift,
    )
    kernel: Any = forward.block_sparse_forward
    with torch.cuda.device_of(query):
        kernel[(len(programs),)](
            *tensors,
            *strides,
            *numbers,
            **variant(layout, query.dtype, width, epilogue, shared_memory(query.device)),
        )
    return out, lse


def variant(
    layout: BlockLayout, dtype: torch.dtype, width: int, epilogue: Epilogue, shared: int
) -> dict[str, Any]:
    """Return the compile-time arguments of `block_sparse_forward`, warps and stages included.

    ``shared`` is the shared memory in bytes that a program may take.
    """
    main, rest = split_width(width)
    parts = layout.k_block // WIDE_TILE if main + rest > 64 and layout.k_block > WIDE_TILE else 1
    rules = {Band: forward.BAND, SameId: forward.SAME_ID, Bitmask: forward.TILES}
    epilogues = {
        "plain": forward.PLAIN,
        "reuse": forward.REUSE,
        "refresh": forward.REFRESH,
        "blend": forward.BLEND,
        "add": forward.ADD,
    }
    rule = forward.NO_RULE if layout.rule is None else rules[type(layout.rule)]
    return {
        "WIDTH": width,
        "MAIN": main,
        "REST": rest,
        "Q_BLOCK": layout.q_block,
        "K_BLOCK": layout.k_block // parts,
        "K_PARTS": parts,
        "RULE": rule.value,
        "HAS_FULL": layout.full_index.shape[-1] > 0,
        "HAS_ORDER": layout.order is not None,
        "RAGGED": layout.k_tokens % layout.k_block > 0,
        "EPILOGUE": epilogues[epilogue.kind].value,
        "CLAMP": epilogue.clamp,
        "WIDE": is_interpreted() and dtype == torch.bfloat16,
        "num_warps": 8 if layout.q_block >= 128 else 4,
        "num_stages": _stages(layout, layout.k_block // parts, main + rest, shared),
        "enable_fp_fusion": True,
        "maxnreg": MOST_REGISTERS if main + rest == 64 and layout.k_block <= 64 else None,
    }


@cache
def shared_memory(device: torch.device) -> int:
    """Return the bytes of shared memory that a program may take on a device."""
    if device.type != "cuda":
        return HOPPER_SHARED
    driver: Any = triton.runtime.driver.active
    return driver.utils.get_device_properties(device.index)["max_shared_mem"]


def _stages(layout: BlockLayout, k_block: int, padded: int, shared: int) -> int:
    """Return how many blocks of keys and values, element masks included, fit in shared memory."""
    query = layout.q_block * padded * HALF_BYTES
    block = 2 * k_block * padded * HALF_BYTES
    if isinstance(layout.rule, Bitmask):
        block += layout.q_block * k_block
    return next((stages for stages in (3, 2) if query + stages * block <= shared), 1)


def split_width(width: int) -> tuple[int, int]:
    """Return the columns of the main part and of the rest, powers of two; the rest may be 0."""
    if 64 < width <= 96:
        return 64, 16 if width <= 80 else 32
    return padded_width(width), 0


def padded_width(width: int) -> int:
    """Return the power of two that a head of this width is padded to inside a kernel."""
    return max(16, 1 << (width - 1).bit_length())


def _lists(layout: BlockLayout) -> list[Tensor]:
    rule = layout.rule
    first = second = layout.partial_index
    if isinstance(rule, SameId):
        first, second = rule.query_ids.to(torch.int64), rule.key_ids.to(torch.int64)
    elif isinstance(rule, Bitmask):
        first, second = rule.tiles.view(torch.uint8), rule.tile_of
    order = layout.full_count if layout.order is None else layout.order.to(torch.int32)
    lists = (layout.full_count, layout.full_index, layout.partial_count, layout.partial_index)
    return [tensor.contiguous() for tensor in (*lists, first, second, order)]


def _positive_scale(query: Tensor, scale: float) -> tuple[Tensor, float]:
    """Move a sign of the scale into the queries: the kernel takes the maximum before it scales."""
    if scale > 0:
        return query, scale
    return (-query, -scale) if scale < 0 else (torch.zeros_like(query), 1.0)


def _list_strides(layout: BlockLayout) -> tuple[int, int, int, int]:
    batch, heads = layout.full_count.shape[:2]
    item = heads * layout.q_blocks if batch > 1 else 0
    head = layout.q_blocks if heads > 1 else 0
    return item, head, layout.full_index.shape[-1], layout.partial_index.shape[-1]


def _rows_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
