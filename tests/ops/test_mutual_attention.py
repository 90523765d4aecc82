"""Shared keys and values, the union, and masks, against plain loops in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.mutual_attention import masked_mutual_attention, shared_rows, union_attention
from tests.techniques.injection_reference import attend, softmax_map


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def test_targets_get_exactly_the_tokens_of_their_sources() -> None:
    tensor = drawn(4, 2, 6, 3)
    source, target, image = torch.tensor([0, 2]), torch.tensor([1, 3]), slice(2, 5)
    shared = shared_rows(tensor, source, target, tokens=image)
    assert torch.equal(shared[source], tensor[source])
    assert torch.equal(shared[target][:, :, image], tensor[source][:, :, image])
    outside = [0, 1, 5]
    assert torch.equal(shared[target][:, :, outside], tensor[target][:, :, outside])
    twice = shared_rows(shared, source, target, tokens=image)
    assert torch.equal(twice, shared)


def test_a_strength_mixes_and_heads_restrict() -> None:
    tensor = drawn(2, 3, 4, 5)
    zero, one = torch.tensor([0]), torch.tensor([1])
    half = shared_rows(tensor, zero, one, strength=0.5)
    assert torch.allclose(half[1], (tensor[0] + tensor[1]) / 2, atol=1e-6)
    assert torch.equal(shared_rows(tensor, zero, one, strength=0.0)[1], tensor[1])
    some = shared_rows(tensor, zero, one, heads=[2])
    assert torch.equal(some[1, :2], tensor[1, :2])
    assert torch.equal(some[1, 2], tensor[0, 2])


def test_the_union_of_equal_halves_is_plain_attention() -> None:
    query, key, value = (drawn(1, 2, 7, 4, seed=s) for s in range(3))
    union = union_attention(query, (key, value), (key, value), plain)
    assert torch.allclose(union, plain(query, key, value), atol=1e-6)


def test_the_union_equals_loops_in_float64() -> None:
    query, key, value, other, seen = (drawn(1, 1, 5, 4, seed=s) for s in range(5))
    union = union_attention(query, (other, seen), (key, value), plain)
    keys, values = (torch.cat([a[0, 0], b[0, 0]]) for a, b in ((key, other), (value, seen)))
    truth = attend(softmax_map(query[0, 0], keys, 0.5), values)
    assert (union[0, 0] - truth).abs().max() < 1e-6


def test_masked_attention_equals_loops_in_float64() -> None:
    query, key, value = (drawn(1, 1, 6, 4, seed=s) for s in range(3))
    of_source = torch.tensor([1, 1, 0, 0, 1, 0]).bool()
    of_target = torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    ours = masked_mutual_attention(query, key, value, of_source, of_target, plain)
    for place in range(6):
        keys = of_source == of_target[place]
        probs = softmax_map(query[0, 0, place : place + 1], key[0, 0, keys], 0.5)
        truth = attend(probs, value[0, 0, keys])[0]
        assert (ours[0, 0, place] - truth).abs().max() < 1e-6


@pytest.mark.parametrize("is_subject", [True, False])
def test_full_masks_give_attention_to_the_whole_source_without_nan(is_subject: bool) -> None:
    query, key, value = (drawn(1, 2, 6, 4, seed=s) for s in range(3))
    mask = torch.full((6,), is_subject)
    ours = masked_mutual_attention(query, key, value, mask, mask, plain)
    assert torch.equal(ours, plain(query, key, value))
    missing = masked_mutual_attention(query, key, value, ~mask, mask, plain)
    assert torch.isfinite(missing).all()
    assert torch.equal(missing, plain(query, key, value))
