"""Grad-SAM's arithmetic: scores of places, the region of a subject, and what is put outside."""

from __future__ import annotations

import torch
from torch import Tensor

from attnctl.ops.grad_sam import (
    blend_region,
    column_gradients,
    importance,
    joined_scores,
    subject_region,
)

ALL = torch.ones(2, 3)


def columns(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 6, 3, generator=generator, dtype=torch.float64).softmax(-1)


def random(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_gradients_of_columns_are_those_of_autograd() -> None:
    probs, value, weight = columns().requires_grad_(True), random(2, 4, 3, 5), random(2, 4, 6, 5)
    out = probs @ value
    target = (weight * out.sin()).sum()
    truth, of_output = torch.autograd.grad(target, (probs, out))
    ours = column_gradients(of_output, value)
    assert torch.allclose(ours, truth, atol=1e-12)
    some = column_gradients(of_output, value[:, :, [2, 0]])
    assert torch.allclose(some, truth[..., [2, 0]], atol=1e-12)


def test_a_linear_layer_scores_attention_times_the_size_of_what_it_moves() -> None:
    # y = sum(A V w): the gradient is (V w)_j at every place.
    probs, value, w = columns(), random(2, 4, 3, 5), random(5)
    gradients = column_gradients(w.expand(2, 4, 6, 5), value)
    scores = importance(probs, gradients, ALL)
    for item in range(2):
        for place in range(6):
            truth = sum(
                float(probs[item, head, place, j] * (value[item, head, j] @ w).abs()) / 4
                for head in range(4)
                for j in range(3)
            )
            assert abs(float(scores[item, place]) - truth) < 1e-12


def test_scores_are_non_negative_and_zero_without_attention_gradient_or_value() -> None:
    probs, gradients = columns(), random(2, 4, 6, 3)
    assert bool((importance(probs, gradients, ALL) >= 0).all())
    assert not importance(torch.zeros_like(probs), gradients, ALL).any()
    assert not importance(probs, torch.zeros_like(gradients), ALL).any()
    mute = column_gradients(random(2, 4, 6, 5), torch.zeros(2, 4, 3, 5))
    assert not importance(probs, mute, ALL).any()


def test_other_words_do_not_count_and_relu_drops_negative_gradients() -> None:
    probs, gradients = columns(), random(2, 4, 6, 3)
    first = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    scores = importance(probs, gradients, first)
    alone = (probs * gradients.abs()).mean(1)
    assert torch.allclose(scores[0], alone[0, :, 0], atol=1e-12)
    assert torch.allclose(scores[1], alone[1, :, 2], atol=1e-12)
    positive = importance(probs, gradients, first, relu=True)
    negative = importance(probs, -gradients, first, relu=True)
    assert torch.allclose(positive + negative, scores, atol=1e-12)
    assert not torch.allclose(positive, scores)


def test_the_scale_of_the_target_does_not_change_the_region() -> None:
    probs, gradients = columns(), random(2, 4, 6, 3)
    one, other = (importance(probs, c * gradients, ALL).unflatten(1, (2, 3)) for c in (1, -1000))
    assert torch.allclose(other, 1000 * one)
    regions = [subject_region(joined_scores([s], (4, 6)), 1.0, 0.5, 0) for s in (one, other)]
    assert torch.equal(*regions)
    assert 0 < int(regions[0].sum()) < regions[0].numel()


def test_layers_count_alike_whatever_their_size_and_scale() -> None:
    fine, coarse = torch.rand(1, 8, 8), 1e6 * torch.ones(1, 2, 2)
    joined = joined_scores([fine, coarse], (8, 8))
    assert torch.allclose(joined, (fine / fine.max() + 1) / 2)
    empty = joined_scores([fine, torch.zeros(1, 4, 4)], (8, 8))
    assert torch.allclose(empty, fine / fine.max() / 2)


def test_scores_that_tell_nothing_give_the_whole_picture() -> None:
    for flat in (torch.zeros(1, 6, 6), torch.full((1, 6, 6), 0.3)):
        assert subject_region(flat, 1.0, 0.5, 0).all()  # the blur of a constant is constant


def test_a_threshold_of_0_keeps_everything_and_1_the_largest_place() -> None:
    scores = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert subject_region(scores, 1.0, 0.0, 0).all()
    peak = subject_region(scores, 0.0, 1.0, 0)
    assert int(peak.sum()) == 1
    assert int(peak.flatten().int().argmax()) == int(scores.flatten().argmax())


def test_dilation_adds_a_cell_in_every_direction_and_removes_none() -> None:
    scores = torch.zeros(1, 9, 9)
    scores[0, 4, 4] = 1.0
    before = subject_region(scores, 0.0, 0.5, 0)
    for count in (1, 2):
        after = subject_region(scores, 0.0, 0.5, count)
        assert int(after.sum()) == (2 * count + 1) ** 2
        assert bool(after[before].all())
        before = after


def test_outside_of_the_region_stands_what_was_given() -> None:
    latents, given = torch.randn(2, 4, 3, 3), torch.randn(1, 4, 3, 3)
    region = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    assert torch.equal(blend_region(latents, given, region), given.expand_as(latents))
    assert torch.equal(blend_region(latents, given, ~region), latents)
    region[0, 0, 1, 2] = True
    blended = blend_region(latents, given, region, 0.25)
    assert torch.equal(blended[0, :, 1, 2], latents[0, :, 1, 2])
    assert torch.allclose(blended[1], 0.75 * latents[1] + 0.25 * given[0], atol=1e-6)
