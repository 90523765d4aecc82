"""Block-sparse attention: every kernel of the ladder against float64, and who is chosen."""

import pytest
import torch
from torch import Tensor

from attnctl.errors import KernelError
from attnctl.kernels import Band, BlockLayout, attention, block_sparse_attention, choose
from attnctl.kernels.cpu_gather import RECORDED_ELEMENTS
from attnctl.ops.masked_attention import attend_masked, merge_attention
from tests.kernels.layouts import LAYOUTS, compare, expected, make_inputs
from tests.kernels.reference import loop_attention, random_qkv

NAMES = ("cpu-gather", "masked-sdpa", "reference")


@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_equals_the_definition_on_every_layout(name: str, form: str) -> None:
    layout = LAYOUTS[form]()
    tensors = make_inputs(layout)
    found = block_sparse_attention(*tensors, layout, scale=0.3, kernel=name)
    compare(found, layout, tensors, 0.3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [8, 64, 72, 88, 96, 128, 160])
def test_head_widths_and_the_usual_scale(name: str, width: int) -> None:
    layout = LAYOUTS["element masks with empty rows"]()
    tensors = make_inputs(layout, width)
    compare(block_sparse_attention(*tensors, layout, kernel=name), layout, tensors, width**-0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    layout = LAYOUTS["band with text"]()
    tensors = make_inputs(layout, 64, dtype)
    out, lse = block_sparse_attention(*tensors, layout, kernel=name)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype == torch.float64:
        assert (out - expected(layout, tensors, 0.125)[0]).abs().max() < 1e-13
    elif name == "masked-sdpa":  # torch's own half-precision kernel rounds the scores too
        assert (out - expected(layout, tensors, 0.125)[0]).abs().max() < 8 * torch.finfo(dtype).eps
    else:
        compare((out, lse), layout, tensors, 0.125)


@pytest.mark.parametrize("form", ["band in another order", "element masks an item and head"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_both_results_are_those_of_the_definition(name: str, form: str) -> None:
    layout = LAYOUTS[form]()
    tensors = [tensor.double() for tensor in make_inputs(layout, 16)]
    weights = torch.randn(2, 3, layout.q_tokens, 17, dtype=torch.float64)

    def gradients(of: str) -> list[Tensor]:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        if of == "definition":
            out, lse = attend_masked(*leaves, layout.element_mask(), 0.25)
        else:
            out, lse = block_sparse_attention(*leaves, layout, kernel=of)
        lse = lse.masked_fill(lse == -torch.inf, 0.0)
        ((out * weights[..., 1:]).sum() + (lse * weights[..., 0]).sum()).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    for found, exact in zip(gradients(name), gradients("definition"), strict=True):
        assert (found - exact).abs().max() < 1e-13


def test_a_layout_and_its_complement_join_to_dense_attention() -> None:
    mask = torch.rand(1, 3, 100, 90) < 0.4
    mask[:, 0, 5] = False
    tensors = [t.double() for t in random_qkv(2, 3, 100, 40, keys=90)]
    parts = [
        block_sparse_attention(*tensors, BlockLayout.from_element_mask(part, 32, 32))
        for part in (mask, ~mask)
    ]
    out, lse = merge_attention(*parts[0], *parts[1])
    exact, exact_lse = attention(*tensors, need_lse=True, kernel="explicit")
    assert exact_lse is not None
    assert (out - exact).abs().max() < 1e-14
    assert (lse - exact_lse).abs().max() < 1e-14


def test_the_definition_equals_a_loop() -> None:
    tensors = random_qkv(2, 3, 7, 8, keys=13, dtype=torch.float64)
    mask = torch.rand(2, 1, 7, 13) < 0.5
    mask[0, 0, 3] = False
    out, lse = attend_masked(*tensors, mask, 0.4)
    exact, exact_lse, _ = loop_attention(*tensors, mask, 0.4)
    assert (out - exact).abs().max() < 1e-14
    torch.testing.assert_close(lse, exact_lse, atol=1e-14, rtol=0)


def test_joining_two_empty_rows_stays_empty() -> None:
    zero, nothing = torch.zeros(1, 4), torch.full((1,), -torch.inf)
    out, lse = merge_attention(zero, nothing, zero, nothing)
    assert torch.equal(out, zero)
    assert torch.equal(lse, nothing)


def test_many_small_pieces_equal_one_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS["element masks an item and head"]()
    tensors = make_inputs(layout)
    whole = block_sparse_attention(*tensors, layout, kernel="cpu-gather")
    monkeypatch.setattr("attnctl.kernels.cpu_gather.CACHED_ELEMENTS", 1)
    pieces = block_sparse_attention(*tensors, layout, kernel="cpu-gather")
    assert RECORDED_ELEMENTS > 1
    for a, b in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, b)


def test_fewer_key_heads_serve_runs_of_query_heads() -> None:
    layout = BlockLayout.from_pattern(Band(9), 50, q_block=16, k_block=16)
    query, key, value = random_qkv(2, 6, 50, 8, keys=50, key_heads=2)
    out, _ = block_sparse_attention(query, key, value, layout)
    exact = loop_attention(query, key, value, layout.element_mask())[0]
    assert (out - exact).abs().max() < 2e-6


def test_some_blocks_are_gathered_and_all_are_not() -> None:
    def chosen(width: int, *, grad: bool = False) -> str:
        layout = BlockLayout.from_pattern(Band(width), 1000, q_block=64, k_block=64)
        request = {"dtype": torch.float32, "head_width": 64, "mask": "block", "lse": True}
        backward = "out+lse" if grad else "none"
        return choose(device="cpu", layout=layout, backward=backward, **request).name

    assert chosen(30) == "cpu-gather"
    assert chosen(30, grad=True) == "cpu-gather"
    assert chosen(999) == "masked-sdpa"


def test_a_kernel_that_cannot_is_refused_with_those_that_can() -> None:
    layout = BlockLayout.from_pattern(Band(3), 40, q_block=8, k_block=8)
    tensors = random_qkv(1, 1, 40, 8, keys=40)
    with pytest.raises(KernelError, match=r"'triton'.*possible here: 'cpu-gather', 'masked-sdpa'"):
        block_sparse_attention(*tensors, layout, kernel="triton")
    with pytest.raises(KernelError, match="'cpu-gather' takes block layouts only"):
        attention(*tensors, kernel="cpu-gather")
    with pytest.raises(KernelError, match=r"does not take blocks of 8 x 8|no C"):
        block_sparse_attention(*[t.repeat(1, 1, 1, 2) for t in tensors], layout, kernel="flex")
    with pytest.raises(KernelError, match="cpu-gather"):
        block_sparse_attention(*tensors, layout, kernel="cpu_gather")


def test_a_layout_for_other_sizes_is_refused() -> None:
    tensors = random_qkv(2, 3, 40, 8, keys=40)
    with pytest.raises(ValueError, match="for 41 queries and 41 keys; got 40 and 40"):
        block_sparse_attention(*tensors, BlockLayout.from_pattern(Band(3), 41))
    mask = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="1 batch items and 2 heads; allowed are 1 or 2"):
        block_sparse_attention(*tensors, BlockLayout.from_block_mask(mask, 64, 64, 40, 40))


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("form", ["band with text", "lanes", "element masks an item and head"])
def test_flex_equals_the_definition_where_it_is_forced(form: str) -> None:
    layout = LAYOUTS[form]()
    tensors = make_inputs(layout, 64)
    try:
        found = block_sparse_attention(*tensors, layout, kernel="flex")
    except KernelError as error:
        pytest.skip(str(error))
    compare(found, layout, tensors, 0.125)
