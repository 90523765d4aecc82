"""Full and partial blocks of rules whose blocks need not be looked at pair by pair."""

import torch
from torch import Tensor

from attnctl.kernels.blocking import Sizes
from attnctl.kernels.rules import Band, SameId


def blocks_of_rule(rule: Band | SameId, sizes: Sizes) -> tuple[Tensor, Tensor] | None:
    """Find the blocks in which some, and every, pair of real tokens is allowed.

    Args:
        rule: The rule; `SameId` only if queries and keys share one rising list of numbers.
        sizes: Block sizes and tokens.

    Returns:
        some and every, bool ``(1, 1, query blocks, key blocks)``; None if the pairs must be
        looked at.
    """
    queries = _ends(sizes.q_tokens, sizes.q_block)
    keys = _ends(sizes.k_tokens, sizes.k_block)
    if isinstance(rule, Band):
        some, every = _band(rule, queries, keys)
    elif _share_rising(rule):
        first_query, last_query = (rule.query_ids[ends].unsqueeze(1) for ends in queries)
        first_key, last_key = (rule.key_ids[ends] for ends in keys)
        some = (first_query <= last_key) & (first_key <= last_query)
        every = (first_query == last_key) & (first_key == last_query)
    else:
        return None
    return some[None, None], every[None, None]


def _band(
    rule: Band, queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    (first_query, last_query), (first_key, last_key) = queries, keys
    low_query, high_query = (_group(rule, ends).unsqueeze(1) for ends in queries)
    low_key, high_key = (_group(rule, ends) for ends in keys)
    nearest = torch.maximum(low_query - high_key, low_key - high_query)
    farthest = torch.maximum(high_query - low_key, high_key - low_query)
    some_text = (first_query < rule.text).unsqueeze(1) | (first_key < rule.text)
    only_text = (last_query < rule.text).unsqueeze(1) | (last_key < rule.text)
    return (nearest <= rule.half_width) | some_text, (farthest <= rule.half_width) | only_text


def _group(rule: Band, positions: Tensor) -> Tensor:
    return (positions.clamp(min=rule.text) - rule.text) // rule.group


def _ends(tokens: int, block: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(0, tokens, block)
    return first, (first + block - 1).clamp(max=tokens - 1)


def _share_rising(rule: SameId) -> bool:
    ids = rule.query_ids
    return torch.equal(ids, rule.key_ids) and bool((ids[1:] >= ids[:-1]).all())
