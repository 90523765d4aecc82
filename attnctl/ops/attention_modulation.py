"""Attention modulation: a temperature for queries, words by weight, one object a pixel.

Source: Wu, Cao, Li, Chen, Wang, Meng, Huang, "Towards Better Text-to-Image Generation Alignment via
Attention Modulation", 2024, arXiv 2404.13899. Its code is not public; what the paper leaves open is
a choice made here, and each function says which.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor

from attnctl.ops.blur import blur_queries

SIGMA = 0.5  # of the blur of word maps, in cells: 3 x 3 weights

Weights = tuple[float, float]


def temper_queries(query: Tensor, temperature: float) -> Tensor:
    """Divide queries by a temperature, which divides every logit by it.

    Args:
        query: ``(B, H, Q, D)``.
        temperature: Above 0, unitless: below 1 the map is sharper, above 1 flatter.

    Returns:
        Same shape and dtype.

    Source: arXiv 2404.13899, temperature of self-attention: ``softmax(q k^T / (tau sqrt(d)))``.
    """
    return query / temperature


def phase_weights(centres: Mapping[float, Weights], fraction: float) -> Weights:
    """Weights of nouns and attributes at a point of the run.

    Args:
        centres: Fraction of the run to the weights there; at least one.
        fraction: Part of the run that lies behind, in [0, 1].

    Returns:
        Linear between the centres, constant outside of them.

    Source: phase-wise weights of arXiv 2404.13899; the interpolation is a choice made here.
    """
    places = sorted(centres)
    for left, right in pairwise(places):
        if left <= fraction <= right:
            share = (fraction - left) / (right - left)
            (noun, attribute), (noun_to, attribute_to) = centres[left], centres[right]
            return noun + share * (noun_to - noun), attribute + share * (attribute_to - attribute)
    return centres[places[0] if fraction < places[0] else places[-1]]


def word_bias(nouns: Tensor, attributes: Tensor, weights: Weights) -> Tensor:
    """Logit bias that multiplies the odds of nouns and attributes by their weights.

    Args:
        nouns: Key positions of nouns, bool ``(K,)``.
        attributes: Key positions of attributes, bool ``(K,)``; none of them a noun.
        weights: Of nouns and of attributes, above 0; 1 leaves them alone.

    Returns:
        ``(K,)``, fp32: ``ln w``, so that rows still sum to 1.

    Source: phase-wise weights of arXiv 2404.13899; the logarithmic bias is a choice made here.
    """
    return nouns * math.log(weights[0]) + attributes * math.log(weights[1])


def object_scores(masses: Tensor, height: int, width: int) -> Tensor:
    """How much each pixel looks at each object's noun.

    Args:
        masses: Probability mass of each noun before masking, ``(B, H, T * height * width, S)``.
        height: Rows of image tokens in a frame.
        width: Columns of image tokens in a frame.

    Returns:
        ``(B, Q, S)``: mean over heads, blurred over each frame with sigma 0.5.

    Source: object-focused mask of arXiv 2404.13899; the nouns alone and the blur are choices made
        here.
    """
    return blur_queries(masses.mean(dim=1, keepdim=True), height, width, SIGMA)[:, 0]


def foreign_words(scores: Tensor, members: Tensor) -> Tensor:
    """Words that a pixel must not see: those of every object but its likeliest one.

    Args:
        scores: From `object_scores`, ``(B, Q, S)``.
        members: Words of each object, noun and attributes, bool ``(S, K)``; no word has two.

    Returns:
        bool ``(B, Q, K)``. A pixel whose best score is below the mean of best scores over the
        pixels is background and sees every word; of equal scores the first object wins.

    Source: object-focused mask of arXiv 2404.13899; the background is a choice made here.
    """
    best, owner = scores.max(dim=-1)  # (B, Q)
    is_object = best >= best.mean(dim=-1, keepdim=True)
    foreign = members.any(dim=0) & ~members[owner]
    return foreign & is_object[..., None]
