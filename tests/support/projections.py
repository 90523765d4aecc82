"""Queries, keys and values of a stock layer, as its own processor would make them."""

from typing import Any

from torch import Tensor


def projected(
    attn: Any, hidden: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Project tokens ``(..., n, C)`` to heads.

    Args:
        attn: A layer without norms of queries and keys.
        hidden: Tokens that ask.
        context: Tokens that answer, e.g. those of the text; the same tokens by default.

    Returns:
        Query, key and value, ``(..., H, n, D)``.
    """
    seen = hidden if context is None else context
    pairs = ((attn.to_q, hidden), (attn.to_k, seen), (attn.to_v, seen))
    query, key, value = (
        project(tokens).unflatten(-1, (attn.heads, -1)).transpose(-3, -2)
        for project, tokens in pairs
    )
    return query, key, value
