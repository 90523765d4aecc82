"""Attention of a target picture to the keys and values of a source picture."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def shared_rows(
    tensor: Tensor,
    source: Tensor,
    target: Tensor,
    *,
    tokens: slice = slice(None),
    strength: float = 1.0,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Give target rows the keys (or values) of their source rows.

    Args:
        tensor: Keys or values, ``(B, H, K, D)``.
        source: Batch indices of the source rows, ``(n,)``.
        target: Batch indices of their target rows, ``(n,)``.
        tokens: Positions that are given; the other ones stay the target's own.
        strength: 1 replaces (and copies exactly), a smaller one mixes.
        heads: Heads that change; ``None`` means all.

    Returns:
        Same shape; source rows are bit-identical.

    Source: MasaCtrl, arXiv 2304.08465, equation 7; Stable Flow, arXiv 2411.14430, section 3.2.
        Mixing is not in the papers.
    """
    new = tensor[target]
    given = tensor[source][:, :, tokens]
    own = new[:, :, tokens]
    mixed = given if strength == 1.0 else own + strength * (given - own)
    if heads is None:
        new[:, :, tokens] = mixed
    else:
        for head in heads:
            new[:, head, tokens] = mixed[:, head]
    return tensor.index_copy(0, target, new)


def union_attention(
    query: Tensor, own: tuple[Tensor, Tensor], source: tuple[Tensor, Tensor], attend: Attend
) -> Tensor:
    """Attention to the source's and the own keys in one softmax.

    Args:
        query: ``(B, H, Q, D)``.
        own: Key and value of the target, ``(B, H, K, D)`` each.
        source: Key and value of the source, same shape.
        attend: Attention of query, key, value.

    Source: the union variant in the code of MasaCtrl, arXiv 2304.08465.
    """
    key, value = (torch.cat([s, t], dim=2) for s, t in zip(source, own, strict=True))
    return attend(query, key, value)


def masked_mutual_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source_mask: Tensor,
    target_mask: Tensor,
    attend: Attend,
) -> Tensor:
    """Let the target's subject see the source's subject, and background background.

    Args:
        query: Target queries ``(B, H, Q, D)``.
        key: Source keys ``(B, H, K, D)``.
        value: Source values ``(B, H, K, D)``.
        source_mask: bool ``(K,)``, the subject in the source.
        target_mask: bool ``(Q,)``, the subject in the target.
        attend: Attention of query, key, value.

    Returns:
        ``(B, H, Q, D)``. A part that the source does not have at all sees the whole source.

    Source: MasaCtrl, arXiv 2304.08465, equations 8 and 9.
    """
    out = torch.empty_like(query[..., : value.shape[-1]])
    for is_subject in (True, False):
        queries = target_mask == is_subject
        keys = source_mask == is_subject
        if not bool(queries.any()):
            continue
        if bool(keys.all()) or not bool(keys.any()):
            seen = attend(query, key, value)
        else:
            seen = attend(query, key[:, :, keys], value[:, :, keys])
        out[:, :, queries] = seen[:, :, queries].to(out)
    return out
