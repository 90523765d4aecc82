"""Biases on logits: which tokens belong to which group, and pairs that may not meet."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def memberships(groups: Sequence[Sequence[int]], keys: int) -> Tensor:
    """Which key belongs to which group, bool ``(groups, keys)``."""
    members = torch.zeros(len(groups), keys, dtype=torch.bool)
    for place, positions in enumerate(groups):
        members[place, list(positions)] = True
    return members


def bias_of(forbidden: Tensor, strength: float, dtype: torch.dtype) -> Tensor:
    """Turn forbidden pairs into an additive bias on the logits.

    Args:
        forbidden: bool, any shape.
        strength: 1 forbids them; less multiplies the odds of a pair by ``1 - strength``.
        dtype: Of the logits.

    Returns:
        Same shape: 0, and half the least number of ``dtype`` or ``log(1 - strength)``.
    """
    value = torch.finfo(dtype).min / 2 if strength >= 1 else math.log1p(-max(strength, 0.0))
    return torch.zeros(forbidden.shape, dtype=dtype, device=forbidden.device).masked_fill_(
        forbidden, value
    )
