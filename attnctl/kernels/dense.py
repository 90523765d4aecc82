"""Dense attention: torch's fused kernels, with and without log-sum-exp, and the plain softmax."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.errors import KernelError
from attnctl.kernels.explicit import run_explicit
from attnctl.kernels.kernel import (
    ANY_DEVICE,
    FLOAT_DTYPES,
    HALF_DTYPES,
    Backward,
    Kernel,
    any_width,
    choose,
    register_kernel,
)
from attnctl.kernels.masks import (
    as_bias,
    as_four_axes,
    default_scale,
    mask_kind,
    repeat_heads,
    split_empty_rows,
)

_aten: Any = torch.ops.aten


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    *,
    need_lse: bool = False,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Compute ``softmax(scale * query key^T + mask) value`` with the cheapest kernel that can.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        value: ``(B, H, K, Dv)``, heads as in ``key``.
        mask: Boolean (True = attend) or additive, broadcastable to ``(B, H, Q, K)``, or None.
        scale: Factor on the scores; None means ``D ** -0.5``.
        need_lse: Return the log-sum-exp too. If a gradient is recorded, it flows through both
            results, so the explicit kernel is chosen.
        kernel: A name from `list_kernels`, or ``"auto"``.

    Returns:
        ``(out, lse)``: out ``(B, H, Q, Dv)`` in the dtype of ``query``; lse ``(B, H, Q)``, natural
        log, float32 (float64 for float64 inputs), None if not asked for. A row without
        an allowed key has out 0 and lse ``-inf``.

    Raises:
        KernelError: No kernel, or not the named one, can do this; the message lists those that can.
        ValueError: Shapes do not fit.
    """
    _check_shapes(query, key, value)
    backward: Backward = "none"
    if torch.is_grad_enabled() and _any_requires_grad(query, key, value, mask):
        backward = "out+lse" if need_lse else "out"
    chosen = choose(
        device=query.device,
        dtype=query.dtype,
        head_width=query.shape[-1],
        value_width=value.shape[-1],
        mask=mask_kind(mask),
        lse=need_lse,
        backward=backward,
        forced=kernel,
    )
    out, lse = chosen.run(query, key, value, mask, scale)
    return out, lse if need_lse else None


def run_sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, None]:
    """Run ``torch.nn.functional.scaled_dot_product_attention``; see `Kernel.run` for the shapes."""
    key, value = (repeat_heads(t, query.shape[1]) for t in (key, value))
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale), None
    opened, empty = split_empty_rows(as_four_axes(mask))
    if opened.dtype != torch.bool:
        opened = opened.to(query.dtype)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=opened, scale=scale)
    return out.masked_fill(empty.unsqueeze(-1), 0.0), None


def run_sdpa_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Run torch's fused kernel for this device and keep its log-sum-exp; see `Kernel.run`.

    The gradient of the log-sum-exp is silently missing in these operators, hence
    ``backward="out"`` in the record.
    """
    key, value = (repeat_heads(t, query.shape[1]) for t in (key, value))
    factor = default_scale(query, scale)
    bias: Tensor | None = None
    empty: Tensor | None = None
    if mask is not None:
        opened, empty = split_empty_rows(as_four_axes(mask))
        bias = as_bias(opened, query.dtype)
    fused = _fused_on_cuda if query.is_cuda else _fused_on_cpu
    out, lse = fused(query, key, value, bias, factor)
    lse = lse[:, :, : query.shape[2]]  # the efficient operator pads the row axis
    if empty is None:
        return out, lse
    return out.masked_fill(empty.unsqueeze(-1), 0.0), lse.masked_fill(empty, -torch.inf)


def _fused_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, attn_mask=bias, scale=scale
    )
    return out, lse


def _fused_on_cuda(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    width = query.shape[-1]
    refused: list[str] = []
    if bias is None and query.dtype in HALF_DTYPES and width % 8 == 0 and width <= 256:
        try:
            out = _aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
            return out[0], out[1]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # built without it, or not for this card
            refused.append(f"flash: {error}")
    if bias is not None:
        bias = _aligned(bias, query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    try:
        out = _aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True, scale=scale
        )
        return out[0], out[1]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        refused.append(f"efficient: {error}")
    raise KernelError(
        f"no fused CUDA operator gives a log-sum-exp for width {width}, {query.dtype} "
        f"({'; '.join(refused)}); use kernel='explicit'"
    )


def _aligned(bias: Tensor, batch: int, heads: int, queries: int, keys: int) -> Tensor:
    """Expand a bias to ``(B, H, Q, K)`` with rows that start at multiples of 16 elements."""
    bias = bias.expand(bias.shape[0], bias.shape[1], queries, keys)
    padded = F.pad(bias, (0, -keys % 16))[..., :keys]
    return padded.expand(batch, heads, queries, keys)


def _any_requires_grad(*tensors: Tensor | None) -> bool:
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"attention takes (batch, heads, tokens, width); got {shapes}")
    if query.shape[-1] != key.shape[-1] or key.shape[:3] != value.shape[:3]:
        raise ValueError(f"query and key widths, key and value tokens must agree; got {shapes}")
    if query.shape[0] != key.shape[0]:
        raise ValueError(f"batch sizes must agree; got {shapes}")


def _equal_width(head_width: int, value_width: int) -> bool:
    return head_width == value_width > 0


register_kernel(
    Kernel(
        name="sdpa",
        summary="torch's scaled_dot_product_attention: whichever fused kernel torch picks",
        run=run_sdpa,
        devices=ANY_DEVICE,
        dtypes=FLOAT_DTYPES,
        head_width=any_width,
        mask=frozenset({"bool", "bias"}),
        lse=False,
        gqa=True,
        exact=True,
        backward="out",
    )
)
register_kernel(
    Kernel(
        name="sdpa-lse",
        summary="torch's fused kernel with the log-sum-exp of each row, for probability columns",
        run=run_sdpa_lse,
        devices=frozenset({"cpu", "cuda"}),
        dtypes=FLOAT_DTYPES,
        head_width=_equal_width,
        mask=frozenset({"bool", "bias"}),
        lse=True,
        gqa=True,
        exact=True,
        backward="out",
    )
)
register_kernel(
    Kernel(
        name="explicit",
        summary="softmax as written, in float32: every gradient, memory queries x keys",
        run=run_explicit,
        devices=ANY_DEVICE,
        dtypes=FLOAT_DTYPES,
        head_width=any_width,
        mask=frozenset({"bool", "bias"}),
        lse=True,
        gqa=True,
        exact=True,
        backward="out+lse",
    )
)
