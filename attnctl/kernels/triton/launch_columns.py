"""Start the Triton kernel for probability columns on torch tensors."""

from typing import Any

import torch
from torch import Tensor

from attnctl.kernels.masks import default_scale
from attnctl.kernels.triton import columns
from attnctl.kernels.triton.launch import LOG2_E, padded_width
from attnctl.kernels.triton.record import is_interpreted

Q_BLOCK = K_BLOCK = 64
MOST_GROUPS = 128


def launch_columns(
    query: Tensor,
    chosen: Tensor,
    lse: Tensor,
    *,
    groups: Tensor | None = None,
    mean_heads: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute columns of the map, or sums of them, without anything of the size queries x keys.

    Args:
        query: ``(B, H, Q, D)``.
        chosen: ``(B, H, n, D)``, the keys of the wanted columns.
        lse: ``(B, H, Q)``, log-sum-exp over all keys.
        groups: ``(n, g)``, weight of each column in each group, g at most 128; None keeps columns.
        mean_heads: Take the mean over the heads.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        float32 ``(B, H, Q, n | g)``, or ``(B, 1, Q, n | g)`` for the mean.
    """
    batch, heads, rows, width = query.shape
    count = chosen.shape[2]
    last = count if groups is None else groups.shape[1]
    shape = (batch, 1 if mean_heads else heads, rows, last)
    out = torch.empty(shape, dtype=torch.float32, device=query.device)
    query, chosen = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, chosen))
    members = lse if groups is None else groups.to(query.device, torch.float32).contiguous()
    strides = [n for tensor in (query, chosen, out) for n in tensor.stride()[:3]]
    numbers = (heads, rows, count, last, default_scale(query, scale) * LOG2_E)
    kernel: Any = columns.probability_columns_forward
    with torch.cuda.device_of(query):
        kernel[(-(-rows // Q_BLOCK), batch * (1 if mean_heads else heads))](
            *(query, chosen, lse.float().contiguous(), members, out),
            *strides,
            *numbers,
            **columns_variant(query.dtype, width, None if groups is None else last, mean_heads),
        )
    return out


def columns_variant(
    dtype: torch.dtype, width: int, groups: int | None, mean_heads: bool
) -> dict[str, Any]:
    """Return the compile-time arguments of the kernel, warps and stages included."""
    padded = 16 if groups is None else max(16, 1 << (groups - 1).bit_length())
    return {
        "WIDTH": width,
        "PADDED": padded_width(width),
        "Q_BLOCK": Q_BLOCK,
        "K_BLOCK": K_BLOCK,
        "MEAN": mean_heads,
        "GROUPED": groups is not None,
        "GROUPS": padded,
        "WIDE": is_interpreted() and dtype == torch.bfloat16,
        "num_warps": 4,
        "num_stages": 3 if mean_heads else 2,  # one head alone has no loop to copy ahead in
        "enable_fp_fusion": True,
    }
