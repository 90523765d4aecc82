"""Formulas that join guidance branches into one prediction.

All tensors are predictions ``(items, ...)`` of one shape; norms, standard deviations and inner
products run over every axis but the first.
"""

import torch
from torch import Tensor


def classifier_free(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Extrapolate from the unconditional to the conditional prediction: ``u + s (c - u)``.

    Source: Ho and Salimans, arXiv 2207.12598, equation 6, with ``s = 1 + w``.
    """
    return uncond + scale * (cond - uncond)


def image_guidance(
    cond: Tensor, image: Tensor, uncond: Tensor, scale: float, image_scale: float
) -> Tensor:
    """Guide by a text and by a picture: ``u + s (c - i) + s_i (i - u)``.

    Source: Brooks et al., InstructPix2Pix, arXiv 2211.09800, equation 3.
    """
    return uncond + scale * (cond - image) + image_scale * (image - uncond)


def rescale_deviation(combined: Tensor, cond: Tensor, amount: float) -> Tensor:
    """Pull the standard deviation of a guided prediction back to that of the conditional one.

    Args:
        combined: Guided prediction ``(items, ...)``.
        cond: Conditional prediction, same shape.
        amount: 0 keeps ``combined``, 1 gives it the deviation of ``cond``; in [0, 1].

    Returns:
        ``r e std(c) / std(e) + (1 - r) e``, same shape; a constant ``e`` stays as it is.

    Source: Lin et al., arXiv 2305.08891, equations 15 and 16.
    """
    axes = tuple(range(1, combined.dim()))
    own = combined.std(dim=axes, keepdim=True)
    ratio = torch.where(own > 0, cond.std(dim=axes, keepdim=True) / own, torch.ones_like(own))
    return amount * (combined * ratio) + (1 - amount) * combined


def project_difference(
    difference: Tensor, cond: Tensor, eta: float, norm_threshold: float
) -> Tensor:
    """Limit a guidance difference, and weigh the part of it that is parallel to the prediction.

    Args:
        difference: ``c - u``, or its running sum, ``(items, ...)``.
        cond: Conditional prediction ``c``, same shape.
        eta: Weight of the parallel part; 1 keeps it, 0 drops it.
        norm_threshold: Largest norm of the difference; 0 sets no limit.

    Returns:
        ``D_orthogonal + eta D_parallel``, shape and dtype of ``difference``. The projection is
        computed in fp64 (fp32 where a device has no fp64).

    Source: Sadat et al., arXiv 2410.02416, section 4 and algorithm 1.
    """
    axes = tuple(range(1, difference.dim()))
    if norm_threshold > 0:
        norm = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
        difference = difference * (norm_threshold / norm).clamp(max=1.0)
    wide = torch.float32 if difference.device.type == "mps" else torch.float64
    onto = torch.nn.functional.normalize(cond.to(wide).flatten(1), dim=1).view_as(cond)
    parallel = (difference.to(wide) * onto).sum(dim=axes, keepdim=True) * onto
    orthogonal = difference.to(wide) - parallel
    return (orthogonal + eta * parallel).to(difference.dtype)


def optimal_scale(cond: Tensor, uncond: Tensor) -> Tensor:
    """Factor that brings the unconditional prediction closest to the conditional one.

    Returns:
        ``<c, u> / |u|^2`` of each item, ``(items, 1, ...)``; 0 where ``u`` is zero.

    Source: Fan et al., CFG-Zero*, arXiv 2503.18886, equation 13.
    """
    axes = tuple(range(1, cond.dim()))
    squared = (uncond * uncond).sum(dim=axes, keepdim=True)
    return (cond * uncond).sum(dim=axes, keepdim=True) / (squared + 1e-8)


def solve_uncond(combined: Tensor, cond: Tensor, scale: float) -> Tensor:
    """The unconditional prediction with which ``u + s (c - u)`` gives ``combined``.

    Args:
        combined: What the pipeline shall get, ``(items, ...)``.
        cond: The conditional prediction that the pipeline has already.
        scale: The pipeline's guidance scale ``s``; must not be 1.
    """
    return (scale * cond - combined) / (scale - 1)
