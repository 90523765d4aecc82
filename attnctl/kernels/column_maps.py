"""Columns of an attention map from a log-sum-exp, summed over groups of keys and over heads."""

import torch
from torch import Tensor

from attnctl.kernels.kernel import HALF_DTYPES
from attnctl.kernels.masks import default_scale, repeat_heads
from attnctl.kernels.triton.record import is_interpreted, takes_width, why_missing


def column_maps(
    query: Tensor,
    key: Tensor,
    tokens: Tensor | slice,
    lse: Tensor,
    *,
    groups: Tensor | None = None,
    mean_heads: bool = False,
    scale: float | None = None,
    fused: bool | None = None,
) -> Tensor:
    """Compute ``exp(scale * query key^T - lse)`` at some keys, and sum it as wished.

    On CUDA one Triton kernel does all of it and stores only the result; elsewhere the columns
    are made first. No gradient is recorded.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, K, D)``, or fewer heads if they divide H.
        tokens: Key positions, a slice or ``(n,)`` integers.
        lse: ``(B, H, Q)``, log-sum-exp over *all* keys, natural log.
        groups: ``(n, g)`` weights: a word of several tokens is a column of ones and zeros.
        mean_heads: Take the mean over the heads.
        scale: Factor on the scores; None means ``D ** -0.5``.
        fused: Whether to take the Triton kernel; None takes it where it can run on CUDA.

    Returns:
        float32 or wider ``(B, H | 1, Q, n | g)``; rows whose lse is ``-inf`` are 0.

    Raises:
        ValueError: ``groups`` does not fit ``tokens``.
    """
    chosen = repeat_heads(key[:, :, tokens], query.shape[1])
    if groups is not None and (groups.ndim != 2 or groups.shape[0] != chosen.shape[2]):
        raise ValueError(
            f"groups must be ({chosen.shape[2]} columns, groups); got shape {tuple(groups.shape)}"
        )
    if _fuses(query, groups) if fused is None else fused:
        from attnctl.kernels.triton.launch_columns import launch_columns

        with torch.no_grad():
            return launch_columns(
                query, chosen, lse, groups=groups, mean_heads=mean_heads, scale=scale
            )
    with torch.no_grad():
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (query.to(wide) * default_scale(query, scale)) @ chosen.to(wide).mT
        whole = lse.to(wide).unsqueeze(-1)
        maps = scores.sub_(whole).exp_().masked_fill_(whole == -torch.inf, 0.0).clamp_(max=1.0)
        maps = maps.mean(1, keepdim=True) if mean_heads else maps
        return maps if groups is None else maps @ groups.to(maps)


def _fuses(query: Tensor, groups: Tensor | None) -> bool:
    width = query.shape[-1]
    fits = takes_width(width, width) and (groups is None or groups.shape[1] <= 128)
    known = query.is_cuda and query.dtype in HALF_DTYPES and not is_interpreted()
    return known and fits and why_missing() is None
