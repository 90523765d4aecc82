"""Columns with their own backward pass, against autograd through the whole map."""

import pytest
import torch
from torch import Tensor

from attnctl.kernels.column_gradients import differentiable_columns
from tests.kernels.reference import random_qkv

TOKENS = torch.tensor([3, 17, 3, 0])


def gradients(columns: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn(columns.shape, generator=generator, dtype=torch.float64)
    return torch.autograd.grad(columns, (query, key), upstream.to(columns.dtype))


def make(dtype: torch.dtype, key_heads: int = 4) -> tuple[Tensor, Tensor]:
    query, key, _ = random_qkv(2, 4, 30, 16, keys=50, key_heads=key_heads, dtype=dtype)
    return query.requires_grad_(), key.requires_grad_()


def whole(query: Tensor, key: Tensor, scale: float) -> Tensor:
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (scale * query @ key.mT).softmax(-1)[..., TOKENS]


@pytest.mark.parametrize("key_heads", [4, 2])
def test_columns_and_gradients_are_those_of_the_whole_map(key_heads: int) -> None:
    query, key = make(torch.float64, key_heads)
    found = differentiable_columns(query, key, TOKENS, scale=0.4)
    exact = whole(query, key, 0.4)
    assert (found - exact).abs().max() < 1e-14
    pairs = zip(gradients(found, query, key), gradients(exact, query, key), strict=True)
    for own, autograd in pairs:
        assert (own - autograd).abs().max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_stays_within_its_rounding(dtype: torch.dtype) -> None:
    query, key = make(dtype)
    exact_query, exact_key = (t.detach().double().requires_grad_() for t in (query, key))
    found = differentiable_columns(query, key, TOKENS)
    exact = whole(exact_query, exact_key, 0.25)
    assert (found - exact).abs().max() < (1e-6 if dtype == torch.float32 else 1e-4)
    pairs = zip(gradients(found, query, key), gradients(exact, exact_query, exact_key), strict=True)
    for own, autograd in pairs:
        assert own.dtype == dtype
        assert (own - autograd).abs().max() < 8 * torch.finfo(dtype).eps * autograd.abs().max()


def test_a_slice_and_a_query_alone() -> None:
    query, key = make(torch.float64)
    found = differentiable_columns(query, key.detach(), slice(0, 5))
    (own,) = torch.autograd.grad(found.square().sum(), query)
    exact = (query @ key.detach().mT / 4).softmax(-1)[..., :5]
    (autograd,) = torch.autograd.grad(exact.square().sum(), query)
    assert (own - autograd).abs().max() < 1e-14


def test_a_constant_log_sum_exp_is_another_gradient() -> None:
    query, key = make(torch.float64)
    found = differentiable_columns(query, key, TOKENS, approximate=True)
    exact = whole(query, key, 0.25)
    true = gradients(exact, query, key)
    scores = query @ key.mT / 4
    exact = (scores[..., TOKENS] - scores.logsumexp(-1, keepdim=True).detach()).exp()
    pairs = zip(gradients(found, query, key), gradients(exact, query, key), true, strict=True)
    for own, autograd, other in pairs:
        assert (own - autograd).abs().max() < 1e-14
        assert (own - other).abs().max() > 1e-3
