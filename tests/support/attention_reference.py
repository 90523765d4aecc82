"""Attention written as plain loops in float64: slow, and obviously right."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def score_loop(
    query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute ``scale * q . k + mask`` one number at a time.

    Args:
        query: ``(B, H, Q, D)``, any floating type.
        key: ``(B, H, K, D)``.
        mask: None; bool, True where attention is allowed; or an additive bias.
            Broadcastable to ``(B, H, Q, K)``.
        scale: Factor before the softmax; ``1 / sqrt(D)`` if None.

    Returns:
        Scores in float64, ``(B, H, Q, K)``; ``-inf`` where forbidden.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    bias = additive_mask(mask, (batch, heads, queries, keys))
    scores = torch.empty(batch, heads, queries, keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                for k in range(keys):
                    dot = (query[b, h, q].double() * key[b, h, k].double()).sum()
                    scores[b, h, q, k] = factor * dot + bias[b, h, q, k]
    return scores


def additive_mask(mask: Tensor | None, shape: tuple[int, int, int, int]) -> Tensor:
    """Turn any mask into a float64 bias of the full shape, ``-inf`` where forbidden."""
    bias = torch.zeros(shape, dtype=torch.float64)
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask.expand(shape), -math.inf)
    return bias + mask.double()


def log_sum_exp_loop(
    query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute the natural log of each row's sum of ``exp(score)``.

    Returns:
        float64, ``(B, H, Q)``; ``-inf`` for a row without an allowed key.
    """
    scores = score_loop(query, key, mask, scale)
    result = torch.empty(scores.shape[:-1], dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape[:-1])).tolist():
        row = [float(score) for score in scores[tuple(place)]]
        top = max(row)
        total = sum(math.exp(score - top) for score in row) if top > -math.inf else 0.0
        result[tuple(place)] = top + math.log(total) if total > 0.0 else -math.inf
    return result


def probability_loop(
    query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Compute the attention map.

    Returns:
        float64, ``(B, H, Q, K)``; rows sum to 1, a row without an allowed key is all zero.
    """
    scores = score_loop(query, key, mask, scale)
    totals = log_sum_exp_loop(query, key, mask, scale)
    probs = torch.zeros_like(scores)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape)).tolist():
        total = float(totals[tuple(place[:-1])])
        if total > -math.inf:
            probs[tuple(place)] = math.exp(float(scores[tuple(place)]) - total)
    return probs


def attention_loop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute attention as the sum of values weighted by the map.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, E)``.
        mask: As in ``score_loop``.
        scale: As in ``score_loop``.

    Returns:
        float64, ``(B, H, Q, E)``; zero for a row without an allowed key, as torch's fused kernels.
    """
    probs = probability_loop(query, key, mask, scale)
    batch, heads, queries, keys = probs.shape
    out = torch.zeros(batch, heads, queries, value.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                for k in range(keys):
                    out[b, h, q] += probs[b, h, q, k] * value[b, h, k].double()
    return out


def loop_error(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> float:
    """Largest error of plain attention in the inputs' own type, the yardstick for tolerances."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    allowed = torch.isfinite(additive_mask(mask, tuple(scores.shape)))
    if mask is not None:
        scores = scores + additive_mask(mask, tuple(scores.shape)).to(scores.dtype)
    probs = torch.where(allowed.any(-1, keepdim=True), scores.softmax(-1), torch.zeros_like(scores))
    exact = attention_loop(query, key, value, mask)
    return float(((probs @ value).double() - exact).abs().max())
