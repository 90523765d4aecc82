"""Grad-SAM: which places matter for a word, by its attention times the gradient of that attention.

Source: Barkan et al., "Grad-SAM", CIKM 2021 (attention times the ReLU of its gradient); Pathania,
"Enhancing Conditional Image Generation with Explainable Latent Space Manipulation", arXiv
2408.16232 (absolute gradient, blur, dilation, mask). The numbers are reconstructions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.blur import gaussian_blur


def column_gradients(of_output: Tensor, value: Tensor) -> Tensor:
    """Gradient with respect to probabilities, from that with respect to ``probs @ value``.

    The output is linear in the map, so ``dy / dA[q, j]`` is ``dy / d out[q]`` times ``value[j]``.

    Args:
        of_output: Gradient of a scalar with respect to the attention output, ``(B, H, Q, D)``.
        value: Values of some keys, ``(B, H, n, D)``.

    Returns:
        ``(B, H, Q, n)``, fp32 or wider.
    """
    wide = of_output if of_output.dtype == torch.float64 else of_output.float()
    return wide @ value.to(wide).mT


def importance(
    columns: Tensor, gradients: Tensor, is_subject: Tensor, *, relu: bool = False
) -> Tensor:
    """Mean over heads of the sum over the subject's tokens of ``A * |dy / dA|``.

    Args:
        columns: Probabilities of some keys, ``(B, H, Q, n)``.
        gradients: Of a scalar with respect to them, same shape.
        is_subject: 1 for the subject's tokens, ``(B, n)``.
        relu: Take the positive part of the gradient, as Grad-SAM does, not its absolute value.

    Returns:
        Scores ``(B, Q)``, non-negative.
    """
    weights = gradients.clamp_min(0) if relu else gradients.abs()
    scores = columns.to(weights) * weights * is_subject.to(weights)[:, None, None]
    return scores.sum(3).mean(1)


def joined_scores(layers: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean over layers of their scores, each resized and divided by its maximum.

    Args:
        layers: Scores ``(B, h, w)``, of any sizes.
        size: Height and width in cells.

    Returns:
        ``(B, H, W)`` in [0, 1]; a layer without any score counts as 0.
    """
    total = torch.zeros(1, device=layers[0].device)
    for scores in layers:
        wide = F.interpolate(scores[:, None], size=size, mode="bilinear", align_corners=False)
        largest = wide.amax((2, 3), keepdim=True)
        total = total + torch.where(largest > 0, wide / largest, torch.zeros_like(wide))[:, 0]
    return total / len(layers)


def subject_region(scores: Tensor, sigma: float, threshold: float, dilations: int) -> Tensor:
    """Region of a subject: scores blurred, scaled to [0, 1], cut, and widened.

    Args:
        scores: ``(B, H, W)``.
        sigma: Width of the blur in cells; 0: none.
        threshold: Least scaled score, in [0, 1].
        dilations: How often the region grows by one cell in every direction.

    Returns:
        bool ``(B, 1, H, W)``; scores that are equal everywhere, such as 0, tell nothing and give
        the whole picture.
    """
    blurred = gaussian_blur(scores[:, None], sigma)
    low, high = blurred.amin((2, 3), keepdim=True), blurred.amax((2, 3), keepdim=True)
    span = high - low
    tells = span > 1e-6 * high
    scaled = torch.where(tells, (blurred - low) / span.where(tells, torch.ones_like(span)), 1.0)
    region = scaled >= threshold
    for _ in range(dilations):
        region = F.max_pool2d(region.float(), 3, stride=1, padding=1) > 0
    return region


def blend_region(latents: Tensor, given: Tensor, region: Tensor, strength: float = 1.0) -> Tensor:
    """Keep latents inside a region, and take given ones outside.

    Args:
        latents: ``(B, C, H, W)``.
        given: Same shape, or of one item.
        region: bool ``(B, 1, H, W)``.
        strength: How far given latents are taken outside, unitless; 1 replaces.
    """
    outside = given.expand_as(latents)
    if strength != 1.0:
        outside = torch.lerp(latents, outside, strength)
    return torch.where(region, latents, outside)
