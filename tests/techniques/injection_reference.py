"""Injection of attention maps, keys and values, written as plain loops in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax_map(query: Tensor, key: Tensor, scale: float) -> list[list[float]]:
    """One head's map: ``query`` (Q, D), ``key`` (K, D)."""
    rows: list[list[float]] = []
    for q in query.double():
        scores = [scale * float((q * k).sum()) for k in key.double()]
        largest = max(scores)
        powers = [math.exp(score - largest) for score in scores]
        rows.append([power / sum(powers) for power in powers])
    return rows


def attend(probs: list[list[float]], value: Tensor) -> Tensor:
    """Output of one head, (Q, D), float64."""
    return torch.stack(
        [sum(p * v for p, v in zip(row, value.double(), strict=True)) for row in probs]  # type: ignore[misc]
    )


def swapped(
    source: list[list[float]], target: list[list[float]], pairs: dict[int, list[tuple[int, float]]]
) -> list[list[float]]:
    """Columns of the target taken from weighted columns of the source; others keep the target's.

    Args:
        source: Map of the source.
        target: Map of the target.
        pairs: For a target column, source columns with their weights.
    """
    result: list[list[float]] = []
    for of_source, of_target in zip(source, target, strict=True):
        row = list(of_target)
        for column, parts in pairs.items():
            row[column] = sum(weight * of_source[at] for at, weight in parts)
        result.append(row)
    return result


def heads_of(tokens: Tensor, heads: int) -> Tensor:
    """(tokens, H * D) to (H, tokens, D)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(0, 1)
