"""Probability columns and masses against the full map: masks, gradients, precision, memory."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnctl.kernels import attention, probability_columns, probability_masses
from attnctl.kernels.columns import _log_sum_exp_in_chunks, log_sum_exp
from tests.kernels.reference import loop_attention, random_qkv

FEW, MANY = 37, 523  # below and above the limit of the explicit softmax; both odd
MASKS = ("none", "bool", "bias", "key bias", "key bool")
TOKENS = torch.tensor([3, 0, 36, 11, 3, -1])


def make_mask(kind: str, keys: int) -> Tensor | None:
    """Make a mask for 5 queries of 2 items and 2 heads; query 4 of item 1 sees no key."""
    generator = torch.Generator().manual_seed(2)
    allowed = torch.rand(2, 1, 5, keys, generator=generator) > 0.3
    allowed[1, :, 4] = False
    bias = torch.randn(2, 2, 5, keys, generator=generator, dtype=torch.float64)
    if kind == "none":
        return None
    if kind == "bool":
        return allowed
    if kind == "key bool":
        return allowed[:, :, :1]
    return bias[:, :, :1] if kind == "key bias" else bias.masked_fill(~allowed, -torch.inf)


def full_map(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    return loop_attention(query, key, key, mask)[2]


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("keys", [FEW, MANY])
def test_columns_equal_the_loop(keys: int, kind: str, differentiable: bool) -> None:
    query, key, _ = random_qkv(2, 2, 5, 8, keys=keys)
    mask = make_mask(kind, keys)
    columns = probability_columns(query, key, TOKENS, mask=mask, differentiable=differentiable)
    expected = full_map(query, key, mask)[..., TOKENS]
    assert columns.shape == (2, 2, 5, 6)
    assert columns.dtype == torch.float32
    assert (columns - expected).abs().max() < 1e-6


@pytest.mark.parametrize("kind", MASKS)
def test_a_given_log_sum_exp_gives_the_same_columns(kind: str) -> None:
    query, key, value = random_qkv(2, 2, 5, 8, keys=MANY)
    mask = make_mask(kind, MANY)
    _, lse = attention(query, key, value, mask, need_lse=True)
    columns = probability_columns(query, key, slice(5, 20), mask=mask, lse=lse)
    expected = full_map(query, key, mask)[..., 5:20]
    assert (columns - expected).abs().max() < 1e-6


def test_all_columns_sum_to_one() -> None:
    query, key, _ = random_qkv(1, 2, 5, 8, keys=MANY)
    for differentiable in (False, True):
        columns = probability_columns(query, key, slice(None), differentiable=differentiable)
        assert (columns.sum(-1) - 1).abs().max() < 1e-5


def test_columns_follow_a_permutation_of_the_keys() -> None:
    query, key, _ = random_qkv(1, 2, 5, 8, keys=MANY)
    order = torch.randperm(MANY, generator=torch.Generator().manual_seed(3))
    plain = probability_columns(query, key, order[:7])
    assert (probability_columns(query, key[:, :, order], slice(0, 7)) - plain).abs().max() < 1e-6


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("keys", [FEW, MANY])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
def test_column_gradients_equal_autograd(
    keys: int, kind: str, dtype: torch.dtype, limit: float
) -> None:
    query, key, _ = (t.requires_grad_() for t in random_qkv(2, 2, 5, 8, keys=keys, dtype=dtype))
    mask = make_mask(kind, keys)
    weights = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    columns = probability_columns(query, key, TOKENS, mask=mask, differentiable=True)
    got = torch.autograd.grad((columns * weights).sum(), [query, key])
    wanted = _autograd_map(query, key, mask)[..., TOKENS]
    expected = torch.autograd.grad((wanted * weights).sum(), [query, key])
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < limit


def _autograd_map(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keys", [FEW, MANY])
def test_half_precision_columns(keys: int, dtype: torch.dtype, differentiable: bool) -> None:
    query, key, _ = random_qkv(1, 2, 5, 16, keys=keys, dtype=dtype)
    columns = probability_columns(query, key, slice(0, 9), differentiable=differentiable)
    expected = full_map(query, key, None)[..., :9]
    assert columns.dtype == torch.float32
    # The fused log-sum-exp is off by about 3e-5.
    assert ((columns - expected).abs() / expected).max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keys", [FEW, MANY])
def test_half_precision_gradients_keep_their_direction(keys: int, dtype: torch.dtype) -> None:
    query, key, _ = random_qkv(1, 2, 5, 16, keys=keys, dtype=dtype)
    tensors = [t.requires_grad_() for t in (query, key)]
    wide = [t.detach().double().requires_grad_() for t in tensors]
    columns = probability_columns(*tensors, slice(0, 9), differentiable=True)
    got = torch.autograd.grad(keys * columns.square().sum(), tensors)
    exact = _autograd_map(*wide, None)[..., :9].square().sum()
    for mine, best in zip(got, torch.autograd.grad(keys * exact, wide), strict=True):
        assert (mine.double() - best).norm() / best.norm() < 4 * torch.finfo(dtype).eps


def test_without_differentiable_nothing_is_recorded() -> None:
    query, key, _ = (t.requires_grad_() for t in random_qkv(1, 2, 5, 8, keys=FEW))
    assert not probability_columns(query, key, slice(0, 3)).requires_grad
    assert probability_columns(query, key, slice(0, 3), differentiable=True).requires_grad


def test_a_finite_bias_that_swallows_the_scores_spreads_evenly() -> None:
    query, key, _ = random_qkv(1, 1, 3, 8, keys=MANY)
    mask = torch.full((3, MANY), torch.finfo(torch.float32).min / 2)
    columns = probability_columns(query, key, slice(0, 4), mask=mask)
    assert (columns - 1 / MANY).abs().max() < 1e-6


def test_an_empty_choice_gives_no_columns() -> None:
    for keys in (FEW, MANY):
        query, key, _ = random_qkv(1, 2, 5, 8, keys=keys)
        for differentiable in (False, True):
            got = probability_columns(query, key, slice(0, 0), differentiable=differentiable)
            assert got.shape == (1, 2, 5, 0)


def test_positions_outside_the_keys_are_refused() -> None:
    query, key, _ = random_qkv(1, 2, 5, 8, keys=FEW)
    with pytest.raises(ValueError, match="from 37 to 37; allowed are the key positions 0 to 36"):
        probability_columns(query, key, torch.tensor([37]))
    with pytest.raises(ValueError, match="integer tensor"):
        probability_columns(query, key, torch.tensor([0.5]))


@pytest.mark.parametrize("kind", MASKS)
def test_chunked_log_sum_exp_equals_the_fused_one(kind: str) -> None:
    query, key, _ = random_qkv(2, 2, 5, 8, keys=MANY)
    mask = make_mask(kind, MANY)
    chunked = _log_sum_exp_in_chunks(query, key, mask, None)
    torch.testing.assert_close(chunked, log_sum_exp(query, key, mask), atol=1e-6, rtol=1e-6)


def test_shared_key_heads_give_the_columns_of_the_repeated_ones() -> None:
    for keys in (FEW, MANY):
        query, key, _ = random_qkv(1, 4, 5, 8, keys=keys, key_heads=2)
        for differentiable in (False, True):
            got = probability_columns(query, key, TOKENS, differentiable=differentiable)
            assert (got - full_map(query, key, None)[..., TOKENS]).abs().max() < 1e-6


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("keys", [FEW, MANY])
def test_masses_equal_the_loop(keys: int, kind: str) -> None:
    query, key, _ = random_qkv(2, 2, 5, 8, keys=keys)
    mask = make_mask(kind, keys)
    generator = torch.Generator().manual_seed(4)
    for groups in (
        torch.rand(keys, 19, generator=generator) > 0.5,  # more groups than the heads are wide
        torch.rand(keys, 3, generator=generator),
        torch.ones(keys, 0),
    ):
        masses = probability_masses(query, key, groups, mask=mask)
        expected = full_map(query, key, mask) @ groups.double()
        assert masses.shape == (2, 2, 5, groups.shape[1])
        assert masses.dtype == torch.float32
        if groups.shape[1]:
            assert (masses - expected).abs().max() < 2e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("keys", [FEW, MANY])
def test_mass_gradients_equal_autograd(keys: int) -> None:
    query, key, _ = (
        t.requires_grad_() for t in random_qkv(2, 2, 5, 8, keys=keys, dtype=torch.float64)
    )
    groups = (torch.arange(keys)[:, None] % 3 == torch.arange(3)).double()
    masses = probability_masses(query, key, groups, differentiable=True)
    got = torch.autograd.grad(masses.square().sum(), [query, key])
    expected = torch.autograd.grad(
        (_autograd_map(query, key, None) @ groups).square().sum(), [query, key]
    )
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-9


def test_groups_of_the_wrong_length_are_refused() -> None:
    query, key, _ = random_qkv(1, 2, 5, 8, keys=FEW)
    with pytest.raises(ValueError, match=r"\(37 keys, groups\)"):
        probability_masses(query, key, torch.ones(4, 2))


class LargestTensor(TorchDispatchMode):
    """Remembers the most bytes that the storage of one operator's output has held."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("way", ["fused", "given", "chunked", "differentiable"])
def test_columns_of_4096_tokens_need_a_twentieth_of_the_map(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, _ = random_qkv(1, 4, 4096, 64, keys=4096)
    map_bytes = 4 * 4096 * 4096 * 4
    lse = log_sum_exp(query, key) if way == "given" else None
    if way == "chunked":
        monkeypatch.setattr("attnctl.kernels.columns.log_sum_exp", _log_sum_exp_in_chunks)
    with LargestTensor() as seen:
        columns = probability_columns(
            query, key, slice(0, 77), lse=lse, differentiable=way == "differentiable"
        )
    assert seen.largest < 0.05 * map_bytes
    rows = slice(None, None, 512)
    expected = (query[:, :, rows].double() @ key.double().mT / 8).softmax(-1)[..., :77]
    assert (columns[:, :, rows] - expected).abs().max() < 1e-5
