"""Weights of heads and tokens against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from attnctl.ops.head_routing import (
    head_sensitivity,
    head_similarity,
    power_weights,
    reweighted_map_change,
    saliency_weights,
    sigmoid_weights,
)
from tests.techniques.head_router_reference import cosine, ranked, sigmoid, stressed


def outputs(seed, dtype=torch.float32, shape=(3, 5, 37, 8)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)],
)
def test_similarity_equals_loops(dtype, tolerance):
    a, b = outputs(0, dtype), outputs(1, dtype) + outputs(0, dtype)
    ours = head_similarity(a, b)
    plain = [[cosine(a[i, h], b[i, h]) for h in range(5)] for i in range(3)]
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (ours - torch.tensor(plain, dtype=torch.float64)).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equal_heads_have_similarity_one_to_the_bit(dtype):
    a = 30 * outputs(0, dtype)
    assert (head_similarity(a, a.clone()) == 1).all()


def test_a_head_without_output_stays_finite():
    a, b = outputs(0), outputs(1)
    a[:, 2], b[:, 2] = 0, 0
    assert torch.equal(head_similarity(a, b)[:, 2], torch.zeros(3))
    assert torch.isfinite(sigmoid_weights(head_similarity(a, b), 0.2, 0.5)).all()


def test_similarity_ignores_a_common_rescaling():
    a, b = outputs(0), outputs(1)
    similarity = head_similarity(a, b)
    assert torch.allclose(head_similarity(300 * a, 300 * b), similarity, atol=1e-6)
    assert torch.allclose(head_similarity(a, -b), -similarity)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 7.0])
def test_sigmoid_weights_equal_loops(sharpness):
    similarity = torch.rand(4, 6, dtype=torch.float64) * 2 - 1
    plain = [
        [1 + 0.3 * sigmoid(sharpness * (rank - 0.4)) for rank in ranked(row)]
        for row in similarity.tolist()
    ]
    ours = sigmoid_weights(similarity, 0.3, 0.4, sharpness)
    assert (ours - torch.tensor(plain, dtype=torch.float64)).abs().max() < 1e-14


def test_weights_fall_with_similarity_and_stay_in_their_range():
    similarity = torch.linspace(-1, 1, 24).unsqueeze(0)
    weights = sigmoid_weights(similarity, 0.2, 0.5)[0]
    assert (weights.diff() <= 0).all()
    assert weights[0].item() == pytest.approx(1 + 0.2 * sigmoid(0.5))
    assert weights[-1].item() == pytest.approx(1 + 0.2 * sigmoid(-0.5))
    assert weights[0].item() == pytest.approx(1.1245, abs=1e-4)
    assert weights[-1].item() == pytest.approx(1.0755, abs=1e-4)


def test_weights_do_not_change_with_the_order_of_the_heads():
    similarity, order = torch.rand(2, 9), torch.randperm(9)
    assert torch.equal(
        sigmoid_weights(similarity, 0.2, 0.5)[:, order],
        sigmoid_weights(similarity[:, order], 0.2, 0.5),
    )


def test_equally_similar_heads_all_get_the_smallest_weight():
    weights = sigmoid_weights(torch.full((2, 8), 0.7), 0.2, 0.5)
    assert torch.equal(head_sensitivity(torch.full((2, 8), 0.7)), torch.zeros(2, 8))
    assert torch.allclose(weights, torch.tensor(1 + 0.2 * sigmoid(-0.5)))


def test_power_weights_equal_the_formula_and_are_capped():
    similarity = torch.tensor([[-1.0, -0.2, 0.0, 0.45, 0.9, 1.0]], dtype=torch.float64)
    ours = power_weights(similarity, 0.5, 0.9)[0].tolist()
    plain = [
        min(1.5, 1 + 0.5 * ((0.9 - s) / 0.9) ** 4) if s < 0.9 else 1.0
        for s in similarity[0].tolist()
    ]
    assert ours == pytest.approx(plain, abs=1e-14)
    assert ours[:3] == [1.5, 1.5, 1.5]
    assert ours[-2:] == [1.0, 1.0]


@pytest.mark.parametrize(("alpha", "upsilon"), [(2.0, 5.0), (5.0, 5.0), (2.0, 0.0)])
def test_saliency_weights_equal_loops(alpha, upsilon):
    values = 4 * outputs(3, torch.float64, (11, 6))
    plain = stressed(values, alpha, upsilon) / values
    ours = saliency_weights(values, alpha, upsilon)
    assert (ours - plain).abs().max() < 1e-13
    assert ours.min() >= alpha / 2
    assert ours.max() < alpha


def test_alpha_two_is_one_plus_half_a_tangent_and_upsilon_zero_is_exactly_one():
    values = 3 * outputs(4, torch.float64, (17, 3))
    share = values.softmax(0)
    assert torch.allclose(saliency_weights(values, 2.0, 5.0), 1 + torch.tanh(2.5 * share))
    assert torch.equal(saliency_weights(values, 2.0, 0.0), torch.ones_like(values))


def test_saliency_is_computed_in_wide_floats():
    values = outputs(5, torch.float16, (4096, 4))
    ours = saliency_weights(values, 2.0, 5.0)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), saliency_weights(values.double(), 2.0, 5.0), atol=1e-6)


def test_the_change_of_a_map_equals_the_map_written_out():
    probs = outputs(6, torch.float64, (2, 3, 7, 12)).softmax(-1)
    value = outputs(7, torch.float64, (2, 3, 12, 5))
    text = slice(0, 4)
    edited = probs.clone()
    for row in range(2):
        for head in range(3):
            edited[row, head, :, text] = stressed(probs[row, head, :, text], 3.0, 5.0)
    change = reweighted_map_change(probs[..., text], value[:, :, text], 3.0, 5.0)
    assert torch.allclose(probs @ value + change, edited @ value, atol=1e-13)
    assert math.isclose(float(reweighted_map_change(probs, value, 2.0, 0.0).abs().max()), 0.0)
