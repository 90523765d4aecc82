"""The algebra of FluxSpace."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from attnctl.ops.semantic_edits import (
    orthogonal_part,
    pooled_direction,
    shifted_at_length,
    text_attention_mask,
)


def tokens(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def test_the_part_is_orthogonal_to_the_null_answer():
    edit, null = tokens(0, 2, 9, 24), tokens(1, 2, 9, 24)
    part = orthogonal_part(edit, null)
    assert ((part * null).sum(-1).abs() < 1e-8).all()
    along = edit - part
    assert torch.allclose(along / null, (along / null)[..., :1].expand_as(along))


def test_the_null_answer_itself_has_no_orthogonal_part():
    null = tokens(0, 2, 9, 24)
    assert orthogonal_part(null, null).abs().max() < 1e-9
    assert torch.equal(orthogonal_part(null, torch.zeros_like(null)), null)


def test_a_shifted_token_keeps_its_length():
    base, shift = tokens(0, 2, 9, 24), 5 * tokens(1, 2, 9, 24)
    moved = shifted_at_length(base, shift)
    assert torch.allclose(moved.norm(dim=-1), base.norm(dim=-1), atol=1e-13)
    plain = (base + shift) / (base + shift).norm(dim=-1, keepdim=True)
    assert torch.allclose(moved, plain * base.norm(dim=-1, keepdim=True), atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_tokens_without_a_shift_are_untouched_to_the_bit(dtype):
    base, shift = tokens(0, 2, 9, 24, dtype=dtype), tokens(1, 2, 9, 24)
    shift[:, ::2] = 0
    moved = shifted_at_length(base, shift)
    assert moved.dtype == dtype
    assert torch.equal(moved[:, ::2], base[:, ::2])
    assert not torch.equal(moved[:, 1::2], base[:, 1::2])


def test_a_token_that_would_vanish_stays_as_it_is():
    base = tokens(0, 1, 3, 8)
    assert torch.equal(shifted_at_length(base, -base), base)
    zero = torch.zeros(1, 2, 4)
    assert torch.equal(shifted_at_length(zero, zero + 1), zero)


def test_the_pooled_vector_turns_towards_what_is_new():
    p, e = tokens(0, 3, 16), tokens(1, 3, 16)
    part = e - (e * p).sum(-1, keepdim=True) / (p * p).sum(-1, keepdim=True) * p
    assert torch.allclose(pooled_direction(p, e, 0.8), 0.2 * p + 0.8 * part, atol=1e-9)
    assert pooled_direction(p, e, 0.0) is p
    assert ((pooled_direction(p, e, 1.0) * p).sum(-1).abs() < 1e-8).all()


def test_an_edit_parallel_to_the_prompt_only_shortens_it():
    p = tokens(0, 3, 16)
    assert torch.allclose(pooled_direction(p, 2.5 * p, 0.3), 0.7 * p, atol=1e-9)


def masks(query, key, columns, tau, pool="mean"):
    """From the whole map, batch entry by batch entry."""
    probs = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    made = []
    for one in probs:
        shares = one[:, list(columns)]
        share = shares.max(-1).values if pool == "max" else shares.mean(-1)
        share = (share - share.min()) / (share.max() - share.min())
        made.append((torch.sigmoid(10 * (share - 0.5)) >= tau).to(query.dtype)[:, None])
    return torch.stack(made)


@pytest.mark.parametrize("columns", [(0,), (3, 1, 4)])
@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("tau", [0.0, 0.2, 0.5, 0.9])
def test_the_mask_equals_that_of_the_whole_map(columns, pool, tau):
    query, key = tokens(0, 2, 3, 50, 8), 2 * tokens(1, 2, 3, 7, 8)
    ours = text_attention_mask(query, key, columns, tau, pool)
    assert torch.equal(ours, masks(query, key, columns, tau, pool))
    assert 0 < ours.mean() < 1 or tau == 0


def test_the_mask_shrinks_with_its_level_from_everything_to_nothing():
    query, key = tokens(0, 1, 3, 50, 8), 2 * tokens(1, 1, 3, 7, 8)
    levels = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9934, 1.0)
    grown = [text_attention_mask(query, key, (0,), level) for level in levels]
    assert torch.equal(grown[0], torch.ones(1, 50, 1, dtype=torch.float64))
    assert not grown[-1].any()
    assert not grown[-2].any()
    for wider, smaller in pairwise(grown):
        assert (smaller <= wider).all()


def test_the_mask_of_an_entry_does_not_depend_on_the_others():
    query, key = tokens(0, 2, 3, 50, 8), tokens(1, 2, 3, 7, 8)
    query[1] *= 4
    both = text_attention_mask(query, key, (0,), 0.5)
    for row in range(2):
        alone = text_attention_mask(query[row : row + 1], key[row : row + 1], (0,), 0.5)
        assert torch.equal(both[row], alone[0])


def test_an_even_map_gives_a_mask_without_nan():
    query, key = torch.zeros(1, 2, 5, 4), tokens(1, 1, 2, 3, 4, dtype=torch.float32)
    assert torch.isfinite(text_attention_mask(query, key, (0,), 0.5)).all()
