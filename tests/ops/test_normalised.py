"""Normalised attention guidance against a plain loop, and its invariants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.ops.normalised import normalised_guidance, shortened

SETTINGS = [
    (4.0, 2.5, 0.25, "l2"),
    (4.0, 2.5, 0.5, "l1"),
    (11.0, 1.0, 1.0, "l2"),
    (0.5, 3.0, 1, "l1"),
]


def pair(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Outputs of two texts, ``(2, 3, 5, 4)``; tokens of very different lengths."""
    positive, negative = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    return (positive * torch.logspace(-2, 2, 5)[:, None]).to(dtype), negative.to(dtype)


def loop(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float, norm: str):
    """One token at a time, heads side by side, in float64."""
    result = torch.empty_like(positive, dtype=torch.float64)
    power = {"l1": 1, "l2": 2}[norm]
    for b in range(positive.shape[0]):
        for q in range(positive.shape[2]):
            plus, minus = positive[b, :, q].flatten().double(), negative[b, :, q].flatten().double()
            guided = [
                (1 + scale) * float(p) - scale * float(n) for p, n in zip(plus, minus, strict=True)
            ]
            length = sum(abs(x) ** power for x in guided) ** (1 / power)
            limit = tau * sum(abs(float(x)) ** power for x in plus) ** (1 / power)
            share = min(1.0, limit / length)
            mixed = [
                alpha * share * g + (1 - alpha) * float(p)
                for g, p in zip(guided, plus, strict=True)
            ]
            result[b, :, q] = torch.tensor(mixed, dtype=torch.float64).view(positive.shape[1], -1)
    return result


@pytest.mark.parametrize("settings", SETTINGS)
def test_guidance_equals_the_loop(settings: tuple[float, float, float, str]) -> None:
    positive, negative = pair()
    expected = loop(positive, negative, *settings)
    own_error = (loop(positive, negative, *settings).float() - expected).abs().max()
    ours = normalised_guidance(positive, negative, *settings)
    assert (ours - expected).abs().max() < 100 * own_error + 1e-6 * expected.abs().max()
    wide = normalised_guidance(positive.double(), negative.double(), *settings)
    assert torch.allclose(wide, expected, rtol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_equal_texts_give_the_positive_output_bit_by_bit(
    settings: tuple[float, float, float, str],
) -> None:
    positive, _ = pair()
    assert torch.equal(normalised_guidance(positive, positive.clone(), *settings), positive)


@pytest.mark.parametrize(("scale", "alpha"), [(0.0, 0.5), (4.0, 0.0)])
def test_no_scale_or_no_share_gives_the_positive_output_bit_by_bit(
    scale: float, alpha: float
) -> None:
    positive, negative = pair()
    assert torch.equal(normalised_guidance(positive, negative, scale, 2.5, alpha), positive)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_no_token_is_longer_than_tau_times_the_positive_one(norm: str) -> None:
    positive, negative = pair(torch.float64)
    negative[:, :, -1] = 1.01 * positive[:, :, -1]
    guided = positive + 9.0 * (positive - negative)
    power = {"l1": 1, "l2": 2}[norm]

    def length(values: Tensor) -> Tensor:
        return values.transpose(1, 2).flatten(2).norm(p=power, dim=-1)

    before = length(guided) / length(positive)
    after = length(shortened(guided, positive, 2.5, norm)) / length(positive)
    assert (before > 2.5).any()
    assert (before < 2.5).any()
    assert (after <= 2.5 * (1 + 1e-12)).all()
    short = (before < 2.5)[:, None, :, None].expand_as(guided)
    assert torch.equal(shortened(guided, positive, 2.5, norm)[short], guided[short])


def test_tokens_of_length_zero_stay_finite() -> None:
    positive, negative = pair()
    positive[:, :, 0], negative[:, :, 0] = 0, 0
    positive[:, :, 1] = 0
    out = normalised_guidance(positive, negative, 4.0, 2.5, 0.25)
    assert torch.isfinite(out).all()
    assert (out[:, :, :2] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    positive, negative = pair(dtype)
    out = normalised_guidance(positive, negative, 4.0, 2.5, 0.25)
    wide = normalised_guidance(positive.float(), negative.float(), 4.0, 2.5, 0.25)
    assert out.dtype == dtype
    assert torch.equal(out, wide.to(dtype))


def test_gradients_flow_to_both_outputs() -> None:
    positive, negative = pair(torch.float64)
    inputs = (positive.requires_grad_(), negative.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda p, n: normalised_guidance(p, n, 4.0, 2.5, 0.25), inputs, atol=1e-6
    )
