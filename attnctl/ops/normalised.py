"""Guidance between two attention outputs, with the length of each token under control.

Source: Chen et al., "Normalized Attention Guidance", 2025, arXiv 2505.21179 (section 4).
"""

import torch
from torch import Tensor

NORMS = {"l1": 1, "l2": 2}


def normalised_guidance(
    positive: Tensor,
    negative: Tensor,
    scale: Tensor | float,
    tau: float,
    alpha: float,
    norm: str = "l2",
) -> Tensor:
    """Move attention outputs away from those of a negative text, without growing out of bounds.

    ``G = Z+ + scale (Z+ - Z-)``, shortened to ``tau |Z+|`` where it is longer, then
    ``Z = (1 - alpha) Z+ + alpha G``. Computed in float32 or wider.

    Args:
        positive: Outputs with the prompt, ``(B, H, Q, D)``.
        negative: Outputs with the negative text, same shape.
        scale: Weight of the difference, from 0, unitless.
        tau: Longest allowed ratio of ``|G|`` to ``|Z+|``, from 1, unitless.
        alpha: Share of the guided output, in [0, 1].
        norm: ``"l2"`` or ``"l1"``, over the heads and widths of one token together.

    Returns:
        ``(B, H, Q, D)`` in the dtype of ``positive``; exactly ``positive`` where both are equal.

    Source: arXiv 2505.21179, equations 7 to 10.
    """
    kept = positive if positive.dtype == torch.float64 else positive.float()
    guided = shortened(kept + scale * (kept - negative.to(kept)), kept, tau, norm)
    return (kept + alpha * (guided - kept)).to(positive.dtype)


def shortened(guided: Tensor, positive: Tensor, tau: float, norm: str) -> Tensor:
    """Shorten each token of ``guided`` to ``tau`` times the same token of ``positive``.

    Args:
        guided: ``(B, H, Q, D)``.
        positive: Same shape.
        tau: Longest allowed ratio of the norms.
        norm: ``"l2"`` or ``"l1"``, over the axes ``H`` and ``D`` together.

    Returns:
        Same shape; tokens that are short enough are untouched, bit by bit.
    """
    limit = tau * _token_norm(positive, norm)
    length = _token_norm(guided, norm)
    return guided * torch.where(length > limit, limit / length, 1.0)


def _token_norm(values: Tensor, norm: str) -> Tensor:
    """Norm of each token, ``(B, 1, Q, 1)``."""
    return torch.linalg.vector_norm(values, ord=NORMS[norm], dim=(1, 3), keepdim=True)
