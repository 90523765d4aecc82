"""Dense kernels against a float64 loop: masks, empty rows, shared heads, gradients, choice."""

import pytest
import torch
from torch import Tensor

from attnctl.errors import KernelError
from attnctl.kernels import Kernel, attention, choose, list_kernels, register_kernel
from tests.kernels.reference import loop_attention, random_qkv

NAMES = ("sdpa", "sdpa-lse", "explicit")
MASKS = ("none", "bool", "bias", "key bias", "bool with empty row", "bias with empty row")
CASES = [(name, mask) for name in NAMES for mask in MASKS]


def make_mask(kind: str, queries: int, keys: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    allowed = torch.rand(2, 1, queries, keys, generator=generator) > 0.4
    allowed[..., 0] = True
    bias = torch.randn(1, 3, queries, keys, generator=generator)
    bias = bias.masked_fill(~allowed[:1], -torch.inf)
    if kind == "none":
        return None
    if kind == "key bias":
        return bias[:, :1, :1]
    if kind.endswith("empty row"):
        allowed[1, 0, 2] = False
        bias[0, 1, 3] = -torch.inf
    return allowed if kind.startswith("bool") else bias


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_dense_kernels_equal_the_loop(name: str, kind: str) -> None:
    query, key, value = random_qkv(2, 3, 7, 8, keys=13)
    mask = make_mask(kind, 7, 13)
    out, lse = attention(query, key, value, mask, need_lse=name != "sdpa", kernel=name)
    expected, expected_lse, _ = loop_attention(query, key, value, mask)
    assert (out - expected).abs().max() < 2e-6
    if name == "sdpa":
        assert lse is None
    else:
        assert lse is not None
        assert lse.dtype == torch.float32
        torch.testing.assert_close(lse.double(), expected_lse, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_within_its_rounding(name: str, dtype: torch.dtype) -> None:
    query, key, value = random_qkv(1, 2, 9, 16, keys=21, dtype=dtype)
    out, lse = attention(query, key, value, need_lse=name != "sdpa", kernel=name)
    expected, expected_lse, _ = loop_attention(query, key, value)
    assert out.dtype == dtype
    assert (out - expected).abs().max() < 4 * torch.finfo(dtype).eps
    if lse is not None:
        assert (
            lse - expected_lse
        ).abs().max() < 1e-4  # the fused half-precision kernels' own error


@pytest.mark.parametrize("name", NAMES)
def test_a_row_without_keys_gives_zero_and_finite_gradients(name: str) -> None:
    query, key, value = (t.requires_grad_() for t in random_qkv(1, 2, 4, 8, keys=6))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[2] = False
    out, _ = attention(query, key, value, mask, kernel=name)
    assert (out[:, :, 2] == 0).all()
    out.square().sum().backward()
    for leaf in (query, key, value):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    assert query.grad is not None
    assert (query.grad[:, :, 2] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_key_heads_serve_runs_of_query_heads(name: str) -> None:
    query, key, value = random_qkv(2, 6, 5, 8, keys=11, key_heads=2)
    out, _ = attention(query, key, value, kernel=name)
    assert (out - loop_attention(query, key, value)[0]).abs().max() < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_given_scale_replaces_the_default(name: str) -> None:
    query, key, value = random_qkv(1, 1, 3, 8, keys=5)
    out, _ = attention(query, key, value, scale=0.9, kernel=name)
    assert (out - loop_attention(query, key, value, scale=0.9)[0]).abs().max() < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_output_gradients_equal_the_explicit_softmax(name: str) -> None:
    leaves = [t.requires_grad_() for t in random_qkv(1, 2, 5, 8, keys=9, dtype=torch.float64)]
    query, key, value = leaves
    weights = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    out, _ = attention(query, key, value, kernel=name)
    got = torch.autograd.grad((out * weights).sum(), leaves)
    probs = (query @ key.mT * 8**-0.5).softmax(-1)
    expected = torch.autograd.grad((probs @ value * weights).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_a_log_sum_exp_under_gradients_is_differentiable() -> None:
    leaves = [t.requires_grad_() for t in random_qkv(1, 2, 5, 8, keys=9, dtype=torch.float64)]
    query, key, value = leaves
    _, lse = attention(query, key, value, need_lse=True)
    assert lse is not None
    got = torch.autograd.grad(lse.sum(), [query, key])
    expected = torch.autograd.grad((query @ key.mT * 8**-0.5).logsumexp(-1).sum(), [query, key])
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-12


def test_the_fused_log_sum_exp_is_refused_where_its_gradient_would_be_missing() -> None:
    query, key, value = (t.requires_grad_() for t in random_qkv(1, 2, 5, 8, keys=9))
    with pytest.raises(KernelError, match=r"gradients for 'out', not for 'out\+lse'.*'explicit'"):
        attention(query, key, value, need_lse=True, kernel="sdpa-lse")


def test_auto_prefers_the_fused_kernels() -> None:
    def name(lse: bool, backward: str = "none", value_width: int = 8) -> str:
        return choose(
            device="cpu",
            dtype=torch.float32,
            head_width=8,
            value_width=value_width,
            lse=lse,
            backward=backward,  # type: ignore[arg-type]
        ).name

    assert name(lse=False) == "sdpa"
    assert name(lse=True) == "sdpa-lse"
    assert name(lse=True, backward="out") == "sdpa-lse"
    assert name(lse=True, backward="out+lse") == "explicit"
    assert name(lse=True, value_width=9) == "explicit"


def test_an_unknown_kernel_names_the_nearest() -> None:
    with pytest.raises(KernelError, match=r"no attention kernel 'sdap'.*'sdpa'"):
        choose(device="cpu", dtype=torch.float32, head_width=8, forced="sdap")


def test_a_request_that_no_kernel_serves_gives_every_reason() -> None:
    with pytest.raises(KernelError, match=r"sdpa: does not take torch.int8.*explicit:"):
        choose(device="cpu", dtype=torch.int8, head_width=8)


def test_a_second_kernel_of_the_same_name_is_refused() -> None:
    first: Kernel = list_kernels()[0]
    with pytest.raises(KernelError, match="exists already"):
        register_kernel(first)
    assert [kernel.name for kernel in list_kernels()][:3] == list(NAMES)


def test_wrong_shapes_are_refused_with_the_shapes() -> None:
    query, key, value = random_qkv(1, 2, 5, 8, keys=9)
    with pytest.raises(ValueError, match="widths"):
        attention(query, key[..., :4], value)
    with pytest.raises(ValueError, match="divisor of 2"):
        attention(query, key[:, :1].expand(1, 5, 9, 8), value[:, :1].expand(1, 5, 9, 8))
    with pytest.raises(ValueError, match="at most 4"):
        attention(query, key, value, torch.ones(1, 1, 1, 5, 9, dtype=torch.bool))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cuda_kernels_equal_the_loop(dtype: torch.dtype, kind: str) -> None:
    query, key, value = random_qkv(2, 3, 7, 16, keys=13, dtype=dtype)
    mask = make_mask(kind, 7, 13)
    expected, expected_lse, _ = loop_attention(query, key, value, mask)
    on_device = None if mask is None else mask.cuda()
    for name in NAMES:
        out, lse = attention(
            query.cuda(),
            key.cuda(),
            value.cuda(),
            on_device,
            need_lse=name != "sdpa",
            kernel=name,
        )
        assert (out.cpu() - expected).abs().max() < max(8 * torch.finfo(dtype).eps, 1e-5)
        if lse is not None:
            torch.testing.assert_close(lse.cpu().double(), expected_lse, atol=2e-2, rtol=0)
