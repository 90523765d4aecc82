"""Routing attention heads by how differently they behave for two prompts, and token refinements.

Source: Xu et al., "HeadRouter", ACM TOG 2025, arXiv 2411.15034, as far as its released code and a
compiled earlier version of it tell; the text of the paper was not available.
"""

import torch
from torch import Tensor

SMALLEST_RANGE = 1e-6
"""Heads whose similarities lie closer together than this count as equally similar."""


def head_similarity(source: Tensor, target: Tensor) -> Tensor:
    """Compare each head's output for one prompt with that for another.

    Args:
        source: Attention outputs ``(B, H, N, D)``.
        target: The same shape.

    Returns:
        Cosine over all tokens and widths of a head, ``(B, H)``, float32 or wider, in [-1, 1];
        exactly 1 for equal outputs, 0 for a head without any output.
    """
    wide = torch.promote_types(source.dtype, torch.float32)
    a, b = source.to(wide), target.to(wide)
    products = (a * b).sum((-2, -1))
    lengths = ((a * a).sum((-2, -1)) * (b * b).sum((-2, -1))).sqrt()
    # One root of the product: for equal outputs it is their dot product, bit by bit.
    return products / lengths.clamp_min(torch.finfo(wide).tiny)


def head_sensitivity(similarity: Tensor) -> Tensor:
    """Rank the heads of a layer: 0 for the most similar one, 1 for the most different one.

    Args:
        similarity: ``(B, H)``.

    Returns:
        ``D = (max s - s) / max(max s - min s, 1e-6)`` over the heads, ``(B, H)`` in [0, 1].
    """
    largest = similarity.amax(-1, keepdim=True)
    spread = largest - similarity.amin(-1, keepdim=True)
    return (largest - similarity) / spread.clamp_min(SMALLEST_RANGE)


def sigmoid_weights(
    similarity: Tensor, gamma: float, delta: float, sharpness: float = 1.0
) -> Tensor:
    """Weights of heads: ``1 + gamma sigmoid(sharpness (D - delta))``.

    Args:
        similarity: ``(B, H)``.
        gamma: Most that a head is amplified by, from 0; 0 gives exactly 1.
        delta: Sensitivity ``D`` at which a head gets half of it.
        sharpness: Steepness; 1 in the source.

    Returns:
        ``(B, H)``, larger for heads that differ more; never below 1.
    """
    return 1 + gamma * torch.sigmoid(sharpness * (head_sensitivity(similarity) - delta))


def power_weights(similarity: Tensor, gamma: float, delta: float) -> Tensor:
    """Weights of heads below a similarity: ``1 + gamma min(((delta - s) / delta)^4, 1)``.

    Args:
        similarity: ``(B, H)``, used as it is, not ranked within the layer.
        gamma: Most that a head is amplified by, from 0.
        delta: Heads at least this similar keep the weight 1; above 0.

    Returns:
        ``(B, H)`` in [1, 1 + gamma].
    """
    below = ((delta - similarity) / delta).clamp_min(0)
    return 1 + gamma * below.pow(4).clamp_max(1)


def saliency_weights(values: Tensor, alpha: float, upsilon: float) -> Tensor:
    """Weights that stress the image tokens on which a channel concentrates.

    Args:
        values: ``(..., tokens, channels)``.
        alpha: Weights lie in [alpha / 2, alpha); 2 leaves an even channel as it is.
        upsilon: How steeply they grow with a token's share ``p`` of its channel's softmax.

    Returns:
        ``alpha sigmoid(upsilon p)``, same shape, float32 or wider: the softmax of thousands of
        tokens is inaccurate in half precision.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    share = torch.softmax(values.to(wide), dim=-2)
    return alpha * torch.sigmoid(upsilon * share)


def reweighted_map_change(columns: Tensor, value: Tensor, alpha: float, upsilon: float) -> Tensor:
    """What reweighting the image-to-text block of the map adds to the output of image tokens.

    Args:
        columns: Probabilities of the text keys for the image queries, ``(B, H, image, text)``.
        value: Values of the text tokens, ``(B, H, text, D)``.
        alpha: As for `saliency_weights`; the shares are taken over the image tokens.
        upsilon: As there.

    Returns:
        ``((W - 1) A) V``, ``(B, H, image, D)`` in the dtype of ``value``. Rows are not normalised
        again.
    """
    weights = saliency_weights(columns, alpha, upsilon)
    return (((weights - 1) * columns) @ value.to(columns.dtype)).to(value.dtype)
