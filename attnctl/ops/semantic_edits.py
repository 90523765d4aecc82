"""Moving attention outputs along what an edit prompt adds to the empty prompt.

Source: Dalva et al., "FluxSpace", CVPR 2025, arXiv 2412.09611; constants as in public copies of its
code.
"""

import torch
from torch import Tensor

SMALLEST_SQUARE = 1e-10
MASK_SLOPE = 10.0
POOLS = ("mean", "max")


def orthogonal_part(edit: Tensor, null: Tensor) -> Tensor:
    """The part of each token of ``edit`` that is orthogonal to the same token of ``null``.

    Args:
        edit: ``(..., C)``.
        null: The same shape.

    Returns:
        ``edit - (<edit, null> / (<null, null> + 1e-10)) null``, float32 or wider.
    """
    edit, null = _wide(edit), _wide(null)
    share = (edit * null).sum(-1, keepdim=True) / (
        (null * null).sum(-1, keepdim=True) + SMALLEST_SQUARE
    )
    return edit - share * null


def shifted_at_length(base: Tensor, shift: Tensor) -> Tensor:
    """Add to each token and bring it back to its length.

    Args:
        base: ``(..., C)``.
        shift: Broadcastable to it.

    Returns:
        ``(base + shift) |base| / |base + shift|`` in the dtype of ``base``, norms over ``C``.
        Tokens that get no shift are untouched, bit by bit, as are those that would vanish.
    """
    wide = _wide(base)
    moved = wide + shift
    before = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    after = torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    scaled = moved * (before / torch.where(after > 0, after, 1.0))
    is_kept = (shift == 0).all(-1, keepdim=True) | (after == 0)
    return torch.where(is_kept, base, scaled.to(base.dtype))


def pooled_direction(pooled: Tensor, edit: Tensor, share: float) -> Tensor:
    """Mix what an edit adds to a pooled text vector into it.

    Args:
        pooled: Vectors of the prompt, ``(B, P)``.
        edit: Vectors of the edit prompt, ``(B, P)``.
        share: From 0, which keeps ``pooled`` bit by bit, to 1, which keeps nothing of it; negative
            shares move away from the edit.

    Returns:
        ``(1 - share) p + share p_perp``, where ``p_perp`` is the part of ``edit`` orthogonal to
        ``pooled``; in the dtype of ``pooled``.
    """
    if share == 0:
        return pooled
    mixed = (1 - share) * _wide(pooled) + share * orthogonal_part(edit, pooled)
    return mixed.to(pooled.dtype)


def text_attention_mask(
    query: Tensor,
    key: Tensor,
    tokens: tuple[int, ...],
    threshold: float,
    pool: str = "mean",
) -> Tensor:
    """Where image tokens attend to some text tokens, as a mask.

    Args:
        query: Queries of the image tokens, ``(B, H, N, D)``, without rotary embedding.
        key: Keys of the text tokens, ``(B, H, T, D)``.
        tokens: Text positions whose probabilities count.
        threshold: Tokens at least this high are in the mask; 0 takes all, more than 0.9934 none.
        pool: How several tokens are joined: ``"mean"`` or ``"max"``.

    Returns:
        ``(B, N, 1)``, 0 or 1: softmax over the text alone, mean over heads, joined over ``tokens``,
        stretched to [0, 1] for each batch entry, then ``sigmoid(10 (m - 0.5)) >= threshold``.
    """
    query, key = _wide(query), _wide(key)
    total = torch.zeros(*query.shape[:1], query.shape[2], len(tokens)).to(query)
    for head in range(query.shape[1]):  # never all heads of a large map at once
        logits = query[:, head] @ key[:, head].transpose(-1, -2) * query.shape[-1] ** -0.5
        total += torch.softmax(logits, dim=-1)[..., list(tokens)]
    share = total.amax(-1) if pool == "max" else total.mean(-1)
    low, high = share.amin(-1, keepdim=True), share.amax(-1, keepdim=True)
    stretched = (share - low) / (high - low).clamp_min(torch.finfo(share.dtype).tiny)
    is_in = torch.sigmoid(MASK_SLOPE * (stretched - 0.5)) >= threshold
    return is_in.unsqueeze(-1).to(query.dtype)


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
