"""Heads that ``where`` chose at a site: taken out of a tensor, or edited while the others stay."""

from collections.abc import Sequence

import torch
from torch import Tensor


def of_heads(value: Tensor, heads: Sequence[int] | None, dim: int = 1) -> Tensor:
    """The chosen heads along an axis; all of them if ``heads`` is ``None``."""
    if heads is None:
        return value
    return value[(slice(None),) * dim + (list(heads),)]


def on_heads(
    edited: Tensor, plain: Tensor | float, heads: Sequence[int] | None, count: int
) -> Tensor:
    """The edited values at the chosen heads, the plain ones elsewhere.

    Args:
        edited: ``(B, H | 1, ..., ...)``, heads on the second axis.
        plain: Broadcastable to it with all heads.
        heads: Chosen heads; ``None`` means all, so that ``edited`` is the answer.
        count: H, heads of the layer.
    """
    if heads is None:
        return edited
    chosen = torch.zeros(count, dtype=torch.bool, device=edited.device)
    chosen[list(heads)] = True
    return torch.where(chosen.view(1, -1, 1, 1), edited, plain)
