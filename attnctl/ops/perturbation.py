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
from attnctl.kernels.masks import as_bias, as_four_axes, split_empty_rows

NEGLIGIBLE = -1000.0
"""A bias this far below the largest of its row leaves a key no weight in any float type."""


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


def identity_output(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Output of the identity map: every token keeps its own value.

    Args:
        value: ``(B, H, N, D)``.
        mask: Boolean or additive, broadcastable to ``(B, H, N, N)``.

    Returns:
        ``(B, H, N, D)``; 0 for a token that may attend to nothing, as attention itself gives.
    """
    if mask is None:
        return value
    _, is_empty = split_empty_rows(as_four_axes(mask))
    return value.masked_fill(is_empty.unsqueeze(-1), 0.0)


def uniform_output(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Output of the uniform map: the mean value over the keys that may be attended to.

    Args:
        value: ``(B, H, K, D)``.
        mask: Boolean or additive, broadcastable to ``(B, H, Q, K)``. A bias forbids a key if it
            lies more than 1000 below the largest of its row; smaller differences do not count.

    Returns:
        ``(B, H, 1, D)``, or ``(B, H, Q, D)`` with a mask that differs from query to query.
    """
    if mask is None:
        return value.mean(dim=2, keepdim=True)
    allowed = as_four_axes(mask)
    if allowed.dtype != torch.bool:
        allowed = allowed - allowed.amax(dim=-1, keepdim=True) > NEGLIGIBLE
    weights = allowed.to(torch.float32)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1)
    return (weights @ value.float()).to(value.dtype)


def mean_query_output(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """Output when every query is the mean query.

    Args:
        query: Queries to average, ``(B, H, n, D)``.
        key: ``(B, H, K, D)``.
        value: ``(B, H, K, D)``.
        mask: Boolean or additive, broadcastable to ``(B, H, Q, K)``.
        scale: Factor of the logits.

    Returns:
        ``(B, H, 1, D)``, or ``(B, H, Q, D)`` with a mask that differs from query to query.

    Source: arXiv 2506.10978 (SoftSEG); the limit of SEG's blur, arXiv 2408.00760.
    """
    mean = query.mean(dim=2, keepdim=True)
    if mask is not None:
        mask = as_four_axes(mask)
        mean = mean.expand(-1, -1, mask.shape[2], -1)
    return attention(mean, key, value, mask, scale)[0]


def image_block_output(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    image: slice,
    text: slice,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Joint attention whose image tokens see themselves and the text, but no other image token.

    Args:
        query: Joint queries ``(B, H, N, D)``; the same tokens as ``key`` and ``value``.
        key: Joint keys.
        value: Joint values.
        image: Image tokens.
        text: Text tokens.
        scale: Factor of the logits.
        mask: Boolean or additive, broadcastable to ``(B, H, N, N)``.

    Returns:
        Output of the image tokens, ``(B, H, image, D)``: ``g v_i + (1 - g) o_text`` with
        ``g = sigmoid(scale q_i . k_i - logsumexp over the text)``. No map of N x N.

    Source: the masked attention of diffusers' Stable Diffusion 3 PAG pipeline, in closed form.
    """
    own = query[:, :, image]
    bias = None if mask is None else _bias_of_image(mask, query, image)
    out_text, lse = attention(
        own,
        key[:, :, text],
        value[:, :, text],
        None if bias is None else bias[..., text].to(query.dtype),
        scale,
        need_lse=True,
    )
    if lse is None:
        raise RuntimeError("the kernel gave no log-sum-exp")
    itself = (own.float() * key[:, :, image].float()).sum(dim=-1) * scale
    if bias is not None:
        itself = itself + bias[..., image].diagonal(dim1=-2, dim2=-1)
    gate = torch.sigmoid(itself - lse).unsqueeze(-1)
    weak = torch.lerp(out_text.float(), value[:, :, image].float(), gate)
    is_empty = (itself.isneginf() & lse.isneginf()).unsqueeze(-1)  # neither itself nor the text
    return weak.masked_fill(is_empty, 0.0).to(value.dtype)


def _bias_of_image(mask: Tensor, query: Tensor, image: slice) -> Tensor:
    """Additive mask of the image tokens as queries, fp32, ``(B | 1, H | 1, image, N)``."""
    tokens = query.shape[2]
    bias = as_bias(as_four_axes(mask), torch.float32)
    return bias.expand(-1, -1, tokens, tokens)[:, :, image]
