"""Columns of an attention map with their exact gradient, for one more pass of fused attention."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnctl.errors import KernelError
from attnctl.kernels.dense import run_sdpa_lse
from attnctl.kernels.masks import default_scale, repeat_heads


def differentiable_columns(
    query: Tensor,
    key: Tensor,
    tokens: Tensor | slice,
    *,
    scale: float | None = None,
    approximate: bool = False,
) -> Tensor:
    """Compute columns of ``softmax(scale * query key^T)``; the map is never made, nor its gradient.

    One fused pass with the keys as values gives the log-sum-exp and the mean key of each query,
    which is all that the gradient of the query needs. The gradient of the key costs one backward
    pass of fused attention, and only if the key asks for it.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        tokens: Key positions, a slice or ``(n,)`` integers; repeated ones are allowed.
        scale: Factor on the scores; None means ``D ** -0.5``.
        approximate: Treat the log-sum-exp as a constant: cheaper, and another gradient.

    Returns:
        ``(B, H, Q, n)``, float32 (float64 for float64 inputs). First-order gradients only.

    Raises:
        KernelError: No fused kernel of this device gives a log-sum-exp.

    Source: ``dP_ij = P_ij (ds_ij - sum_l P_il ds_il)``: with upstream ``g`` and ``w_i`` the sum of
    ``g P`` over the columns, ``dq_i = scale (sum_j g_ij P_ij k_j - w_i mean_key_i)``.
    """
    if query.device.type not in ("cpu", "cuda"):
        raise KernelError(f"no fused kernel gives a log-sum-exp on {query.device.type}")
    key = repeat_heads(key, query.shape[1])
    positions = torch.arange(key.shape[2], device=key.device)[tokens]
    factor = default_scale(query, scale)
    columns: Any = _Columns.apply(query, key, positions, factor, approximate)
    return columns


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, positions: Tensor, scale: float, approximate: bool
    ) -> Tensor:
        # The graph of this pass is kept only where its backward pass will be needed.
        with torch.set_grad_enabled(ctx.needs_input_grad[1] and not approximate):
            value = key.detach().requires_grad_(ctx.needs_input_grad[1])
            mean_key, lse = run_sdpa_lse(query.detach(), key.detach(), value, None, scale)
        ctx.value, ctx.mean_key = value, mean_key
        scores = (query.to(lse.dtype) * scale) @ key[:, :, positions].to(lse.dtype).mT
        columns = scores.sub_(lse.unsqueeze(-1)).exp_().clamp_(max=1.0)
        ctx.save_for_backward(query, key, positions, columns)
        ctx.scale, ctx.approximate = scale, approximate
        return columns

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, upstream: Tensor
    ) -> tuple[Tensor | None, ...]:
        query, key, positions, columns = ctx.saved_tensors
        weighted = upstream * columns * ctx.scale
        total = weighted.sum(-1, keepdim=True)
        to_query = to_key = None
        wide = columns.dtype
        if ctx.needs_input_grad[1]:
            to_key = torch.zeros_like(key, dtype=wide)
            if not ctx.approximate:
                # What attention's backward pass gives its value is the transposed map times rows.
                rows = total * query.to(wide)
                peak = rows.abs().amax().clamp_min(torch.finfo(wide).tiny)
                rows = (rows / peak).to(query.dtype)  # half precision would lose small ones
                (gathered,) = torch.autograd.grad(ctx.mean_key, ctx.value, rows, retain_graph=True)
                to_key.sub_(gathered.to(wide) * peak)
                del rows, gathered  # before the query's gradient: both at once would be the peak
            to_key.index_add_(2, positions, weighted.mT @ query.to(wide))
            to_key = to_key.to(key.dtype)
        if ctx.needs_input_grad[0]:
            to_query = weighted @ key[:, :, positions].to(wide)
            if not ctx.approximate:
                to_query -= total * ctx.mean_key.detach().to(wide)
            to_query = to_query.to(query.dtype)
        return to_query, to_key, None, None, None
