"""PrimeComposer: an object pasted into a scene by logits that were measured where both are known.

Source: Wang, Zhang, Zheng, Jin, "PrimeComposer: Faster Progressively Combined Diffusion for Image
Composition with Attention Steering", ACM MM 2024, arXiv 2403.05053, and its official code.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from attnctl.ops.masked_attention import merge_attention

Shift = tuple[int, int]
"""Rows and columns, in cells, from an object's canvas to its place in the scene."""

AttendWithLse = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Attention of query, key, value and mask, with the log-sum-exp ``(B, H, Q)`` of its rows."""


def steps_until(share: float, steps: int, order: int = 1) -> int:
    """First solver step that lies behind a share of the run.

    Args:
        share: In [0, 1].
        steps: Of the sampler, N.
        order: Of the multistep solver, from 1. Its ``order - 1`` steps that start it up come
            before step 0 and are not counted.

    Source: ``int(tau N + 1 - order)``; official code. What is above 0 is never rounded up.
    """
    return max(int(share * steps + 1 - order + 1e-9), 0)


def strided(mask: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th row and column of a mask ``(H, W)``, from the first."""
    return mask[::stride, ::stride]


def paired_tokens(mask: Tensor, shift: Shift, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens of an object on its own canvas, and the tokens that they become in the scene.

    Args:
        mask: Cells of the object on its canvas, bool ``(h, w)``.
        shift: From there to the scene, in these cells.
        stride: Cells between the tokens of a layer; the shift is rounded to whole tokens.

    Returns:
        S_o and S_g, ``(K,)`` each, row by row: entries at one place belong together. What would
        fall outside the scene is left out of both.

    Source: ``S_o`` and ``S_g`` of arXiv 2403.05053, official code.
    """
    coarse = strided(mask, stride)
    height, width = coarse.shape
    rows, columns = coarse.nonzero(as_tuple=True)
    to_rows, to_columns = (
        places + round(by / stride) for places, by in zip((rows, columns), shift, strict=True)
    )
    inside = (to_rows >= 0) & (to_rows < height) & (to_columns >= 0) & (to_columns < width)
    own, scene = rows * width + columns, to_rows * width + to_columns
    return own[inside], scene[inside]


def with_tokens(base: Tensor, to: Tensor, given: Tensor, taken: Tensor) -> Tensor:
    """Write some cells of given latents over other cells of a base.

    Args:
        base: ``(B, C, h, w)``.
        to: Cells that are written, row by row, ``(K,)``.
        given: ``(B | 1, C, h, w)``.
        taken: Cells that are read, ``(K,)``.
    """
    values = given.to(base).flatten(2)[:, :, taken].expand(len(base), -1, -1)
    return base.flatten(2).index_copy(2, to, values).view_as(base)


def start_latents(
    scene: Tensor, given: Tensor, noise: Tensor, box: Tensor, pair: tuple[Tensor, Tensor],
    *, from_object: bool,
) -> Tensor:  # fmt: skip
    """Where a composition starts: the scene's noise, with a box of fresh noise.

    Args:
        scene: Inverted background, ``(B, C, h, w)``.
        given: Inverted canvas with the object, same shape.
        noise: Fresh noise, same shape.
        box: Where the object goes, bool ``(h, w)``.
        pair: ``S_o`` and ``S_g`` of these latents.
        from_object: The object's cells take the canvas' noise (another style), instead of keeping
            the scene's (the same style).

    Source: arXiv 2403.05053, official code.
    """
    own, to = pair
    fresh = torch.where(box, noise, scene)
    return with_tokens(fresh, to, given, own) if from_object else with_tokens(fresh, to, scene, to)


def infused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    attend: AttendWithLse,
) -> Tensor:
    """Attention whose logits to and from an object's tokens are given.

    ``L[:, S] = W``, then ``L[S, :] = W^T``; the softmax mixes given and own logits. The rows of S
    are W^T alone. In the other rows attention to the rest, with any kernel, is joined with
    attention to S by their log-sum-exps, so that no map of all tokens is made.

    Args:
        query: ``(B, H, n, D)``.
        key: ``(B, H, n, D)``.
        value: ``(B, H, n, Dv)``.
        prior: W, scaled logits from each token to those of the object, ``(B, H, n, K)``, fp32.
        tokens: S, ``(K,)``, in the order of W.
        mask: Additive, on top of the infused logits; broadcastable to ``(B, H, n, n)``.
        attend: Attention with its log-sum-exp.

    Returns:
        ``(B, H, n, Dv)`` in the dtype of ``value``; without any tokens plain attention.

    Source: arXiv 2403.05053, prior weights infusion; order of writing from the official code.
    """
    count = key.shape[2]
    is_rest = torch.ones(count, dtype=torch.bool, device=key.device)
    is_rest[tokens] = False
    bias = None if mask is None else mask.expand(*mask.shape[:2], count, count)
    if not len(tokens):
        return attend(query, key, value, bias)[0]
    wide = value.to(prior)
    to_object = prior if bias is None else prior + bias[..., tokens]
    out = to_object.softmax(-1) @ wide[:, :, tokens]
    if bool(is_rest.any()):
        own = None if bias is None else bias[..., is_rest]
        rest, lse = attend(query, key[:, :, is_rest], value[:, :, is_rest], own)
        out, _ = merge_attention(out, to_object.logsumexp(-1), rest.to(prior), lse.to(prior))
    from_object = prior.mT if bias is None else prior.mT + bias[:, :, tokens]
    return out.index_copy(2, tokens, from_object.softmax(-1) @ wide).to(value)
