"""Attention as written: every score, in float32 or wider, with every gradient."""

import torch
from torch import Tensor

from attnctl.kernels.masks import as_four_axes, default_scale, repeat_heads, split_empty_rows


def run_explicit(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Compute the softmax as written, in float32 or wider; see `Kernel.run` for the shapes.

    Gradients of output, log-sum-exp and additive mask are exact, rows without a key included.
    """
    value = repeat_heads(value, query.shape[1])
    scores, empty = _masked_scores(query, key, mask, scale)
    probs = _softmax(scores, empty)
    return (probs @ value.to(probs.dtype)).to(query.dtype), _log_sum_exp(scores, empty)


def attention_scores(query: Tensor, key: Tensor, scale: float | None = None) -> Tensor:
    """Compute ``scale * query key^T`` in float32 or wider, without a mask.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        ``(B, H, Q, K)``, float32, or float64 for float64 inputs.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    key = repeat_heads(key, query.shape[1]).to(wide)
    query = query.to(wide) * default_scale(query, scale)
    # A product copies strided operands of several items, but not those of one; with strides alike
    # an item has the same bits, and its gradient too, whatever its company.
    return query.contiguous() @ key.transpose(-1, -2).contiguous()


def explicit_probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Return all attention weights.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        mask: Boolean (True = attend) or additive, broadcastable to ``(B, H, Q, K)``, or None.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        Weights ``(B, H, Q, K)``, rows sum to 1, or to 0 without an allowed key; float32, or
        float64 for float64 inputs.
    """
    return _softmax(*_masked_scores(query, key, mask, scale))


def explicit_log_sum_exp(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Return the log-sum-exp of each row, from all its scores.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        mask: Boolean (True = attend) or additive, broadcastable to ``(B, H, Q, K)``, or None.
        scale: Factor on the scores; None means ``D ** -0.5``.

    Returns:
        ``(B, H, Q)``, ``-inf`` without an allowed key; float32, or float64 for float64 inputs.
    """
    return _log_sum_exp(*_masked_scores(query, key, mask, scale))


def _masked_scores(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """Scores with the mask, and the rows without a key (opened everywhere), ``(B, H, Q)``."""
    scores = attention_scores(query, key, scale)
    if mask is None:
        return scores, None
    opened, empty = split_empty_rows(as_four_axes(mask))
    if opened.dtype == torch.bool:
        return scores.masked_fill(~opened, -torch.inf), empty
    return scores + opened.to(scores.dtype), empty


def _softmax(scores: Tensor, empty: Tensor | None) -> Tensor:
    probs = scores.softmax(dim=-1)
    return probs if empty is None else probs.masked_fill(empty.unsqueeze(-1), 0.0)


def _log_sum_exp(scores: Tensor, empty: Tensor | None) -> Tensor:
    lse = scores.logsumexp(dim=-1)
    return lse if empty is None else lse.masked_fill(empty, -torch.inf)
