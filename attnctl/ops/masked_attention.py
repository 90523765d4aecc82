"""Attention under a mask with its log-sum-exp, and how two disjoint parts join."""

import torch
from torch import Tensor


def attend_masked(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute ``softmax(scale * query key^T)`` over the allowed keys, times the value.

    Args:
        query: ``(B, H, Q, D)``; the work is done in its dtype, so give float64 for a reference.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, Dv)``.
        mask: bool, True = attend, broadcastable to ``(B, H, Q, K)``; None allows every pair.
        scale: Factor on the scores.

    Returns:
        out ``(B, H, Q, Dv)`` and lse ``(B, H, Q)``, the natural logarithm of the sum of the
        exponentials of the allowed scores. A row without an allowed key gives out 0 and lse
        ``-inf``. Both have exact gradients, such rows included.

    Source: Vaswani et al. 2017, eq. 1.
    """
    scores = (query * scale) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (top + total.log()).masked_fill(empty, -torch.inf)
    return (weights / total) @ value, lse.squeeze(-1)


def merge_attention(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Join attention over two disjoint sets of keys into attention over both.

    Args:
        out_a: ``(..., Q, Dv)``, attention over the first set.
        lse_a: ``(..., Q)``, its log-sum-exp; ``-inf`` for a row without keys.
        out_b: As ``out_a``, for the second set.
        lse_b: As ``lse_a``.

    Returns:
        out and lse over the union; out in the dtype of ``out_a``.

    Source: ``L = log(e^a + e^b)``, ``out = e^(a - L) out_a + e^(b - L) out_b``; exact.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    safe = torch.where(lse == -torch.inf, 0.0, lse)
    share_a, share_b = ((part - safe).exp().unsqueeze(-1) for part in (lse_a, lse_b))
    out = share_a * out_a.to(share_a.dtype) + share_b * out_b.to(share_b.dtype)
    return out.to(out_a.dtype), lse
