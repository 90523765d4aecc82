"""Weaker copies of attention, for guidance away from them: identity, uniform and mean-query maps.

Attention is linear in its map, so a map that is pulled towards a target needs no map at all:
``attend((1 - u) A + u A') = (1 - u) attend(A) + u attend(A')``.

Source: Ahn et al., "Where and How to Perturb", NeurIPS 2025, arXiv 2506.10978 (SoftPAG, section 3);
Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", ECCV 2024,
arXiv 2403.17377 (PAG, equation 13).
"""

import torch
from torch import Tensor

from attnctl.kernels import attention


def pull(out: Tensor, target: Tensor, strength: Tensor | float) -> Tensor:
    """Pull attention outputs towards those of a target map.

    Args:
        out: ``(B, H, Q, D)``.
        target: Output of the target map, broadcastable to ``out``.
        strength: 0 keeps ``out`` bit by bit, 1 gives ``target``; a number or one per head ``(H,)``.

    Returns:
        ``(B, H, Q, D)``, dtype of ``out``.

    Source: arXiv 2506.10978, linear interpolation.
    """
    if isinstance(strength, Tensor):
        weight = strength.to(out).view(1, -1, 1, 1)
        return torch.where(weight == 0, out, torch.lerp(out, target.expand_as(out), weight))
    return out if strength == 0 else torch.lerp(out, target.expand_as(out), strength)


def identity_output(value: Tensor) -> Tensor:
    """Output of the identity map: every token keeps its own value, ``(B, H, N, D)``."""
    return value


def uniform_output(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Output of the uniform map: the mean value over the keys that may be attended to.

    Args:
        value: ``(B, H, K, D)``.
        mask: Boolean or additive, broadcastable to ``(B, H, Q, K)``.

    Returns:
        ``(B, H, 1, D)``, or ``(B, H, Q, D)`` with a mask that differs from query to query.
    """
    if mask is None:
        return value.mean(dim=2, keepdim=True)
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 4
    weights = allowed.to(torch.float32)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)
    return (weights @ value.float()).to(value.dtype)


def mean_query_output(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Output when every query is the mean query: one row for all, ``(B, H, 1, D)``.

    Source: arXiv 2506.10978 (SoftSEG); the limit of SEG's blur, arXiv 2408.00760.
    """
    mean = query.mean(dim=2, keepdim=True)
    shared = None if mask is None else mask[..., :1, :]
    return attention(mean, key, value, shared, scale)[0]


def image_block_output(
    query: Tensor, key: Tensor, value: Tensor, image: slice, text: slice, scale: float
) -> Tensor:
    """Joint attention whose image tokens see themselves and the text, but no other image token.

    Args:
        query: Joint queries ``(B, H, N, D)``; the same tokens as ``key`` and ``value``.
        key: Joint keys.
        value: Joint values.
        image: Image tokens.
        text: Text tokens.
        scale: Factor of the logits.

    Returns:
        Output of the image tokens, ``(B, H, image, D)``: ``g v_i + (1 - g) o_text`` with
        ``g = sigmoid(scale q_i . k_i - logsumexp over the text)``. No map of N x N.

    Source: the masked attention of diffusers' Stable Diffusion 3 PAG pipeline, in closed form.
    """
    own = query[:, :, image]
    out_text, lse = attention(own, key[:, :, text], value[:, :, text], None, scale, need_lse=True)
    if lse is None:
        raise RuntimeError("the kernel gave no log-sum-exp")
    itself = (own.float() * key[:, :, image].float()).sum(dim=-1) * scale
    gate = torch.sigmoid(itself - lse).unsqueeze(-1)
    return torch.lerp(out_text.float(), value[:, :, image].float(), gate).to(value.dtype)
