"""Arithmetic of editing from an inversion: the pull of RF-Inversion, blending by a mask."""

import torch
from torch import Tensor


def controlled_velocity(
    velocity: Tensor, latents: Tensor, source: Tensor, level: float, eta: Tensor
) -> Tensor:
    """Pull a velocity towards the one that leads straight to the source.

    Args:
        velocity: ``noise - clean`` as the model predicts it, ``(items, ...)``.
        latents: At noise level ``level``, same shape.
        source: Clean latents to be pulled to, ``(1, ...)`` or the same shape.
        level: Noise level ``s`` in (0, 1]; latents are ``(1 - s) clean + s noise``.
        eta: Pull for each item, ``(items,)``, in [0, 1].

    Returns:
        ``v + eta (v* - v)`` with ``v* = (latents - source) / s``, fp32 or wider; rows whose pull
        is 0 are exactly ``velocity``.

    Source: Rout et al., 2410.10792, eq. 15, with noise at ``s = 1``.
    """
    wide = torch.promote_types(velocity.dtype, torch.float32)
    straight = (latents.to(wide) - source.to(wide)) / level
    weight = eta.to(wide).view(-1, *[1] * (velocity.dim() - 1))
    pulled = velocity.to(wide) + weight * (straight - velocity.to(wide))
    return torch.where(weight == 0, velocity.to(wide), pulled)
