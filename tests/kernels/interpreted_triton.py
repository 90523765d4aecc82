"""Triton kernels under Triton's interpreter; `test_triton` runs this file in its own process.

Triton reads ``TRITON_INTERPRET`` when it is imported, so one process cannot do both.
"""

import itertools

import pytest
import torch

from attnctl.kernels import (
    Band,
    BlockLayout,
    agent_attention,
    attention,
    block_sparse_attention,
    column_maps,
    explicit_probabilities,
    sparse_blend,
    sparse_refresh,
    sparse_reuse,
)
from attnctl.ops.agents import attend_by_agents
from tests.kernels.layouts import HEADS, LAYOUTS, compare, make_inputs, tolerance

MASKED = "element masks with empty rows"


def small() -> BlockLayout:
    return BlockLayout.from_pattern(Band(5), 40, q_block=16, k_block=16)


@pytest.mark.parametrize("form", LAYOUTS)
def test_every_layout(form: str) -> None:
    layout = LAYOUTS[form]()
    tensors = make_inputs(layout)
    found = block_sparse_attention(*tensors, layout, scale=0.3, kernel="triton")
    compare(found, layout, tensors, 0.3)


@pytest.mark.parametrize("width", [8, 64, 72, 88, 96, 128])
def test_head_widths(width: int) -> None:
    tensors = make_inputs(small(), width)
    found = block_sparse_attention(*tensors, small(), kernel="triton")
    compare(found, small(), tensors, width**-0.5)


@pytest.mark.parametrize("keys", [256, 260, 340])  # the last block: none, its first part, both
@pytest.mark.parametrize("form", ["whole", "band in another order", "element masks"])
def test_wide_heads_take_a_large_block_in_parts(form: str, keys: int) -> None:
    sizes = {"q_block": 128, "k_block": 128}
    if form == "whole":
        mask = torch.rand(1, HEADS, 1, -(-keys // 128)) < 0.7
        layout = BlockLayout.from_block_mask(mask, 128, 128, 100, keys)
    elif form == "element masks":
        layout = BlockLayout.from_element_mask(torch.rand(100, keys) < 0.3, **sizes)
    else:
        order = torch.randperm(keys)
        layout = BlockLayout.from_pattern(Band(70, text=9), keys, order=order, **sizes)
    tensors = make_inputs(layout, 128)
    found = block_sparse_attention(*tensors, layout, kernel="triton")
    compare(found, layout, tensors, 128**-0.5)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
@pytest.mark.parametrize("form", ["shared lists, ragged", MASKED])
def test_scales_that_are_not_positive(form: str, scale: float) -> None:
    layout = LAYOUTS[form]()
    tensors = make_inputs(layout)
    found = block_sparse_attention(*tensors, layout, scale=scale, kernel="triton")
    compare(found, layout, tensors, scale)


def test_a_band_wider_than_any_sequence() -> None:
    band = Band(2**31 - 1, text=3, group=7)
    layout = BlockLayout.from_pattern(band, 40, q_block=16, k_block=16)
    one = torch.ones(1, 1, 3, dtype=torch.int32)
    layout = BlockLayout(
        16, 16, 40, 40, one - 1, one[..., None] * 0, 3 * one, layout.full_index, band
    )
    tensors = make_inputs(layout)
    compare(block_sparse_attention(*tensors, layout, kernel="triton"), layout, tensors, 40**-0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["lists an item and head", MASKED])
def test_half_precision(form: str, dtype: torch.dtype) -> None:
    layout = LAYOUTS[form]()
    tensors = make_inputs(layout, 64, dtype)
    compare(block_sparse_attention(*tensors, layout, kernel="triton"), layout, tensors, 0.125)


def test_all_kernels_agree_with_each_other() -> None:
    layout = LAYOUTS[MASKED]()
    tensors = make_inputs(layout)
    names = ("triton", "cpu-gather", "masked-sdpa", "reference")
    found = [block_sparse_attention(*tensors, layout, scale=0.3, kernel=name) for name in names]
    limits = tolerance(layout, tensors, 0.3)
    for one, other in itertools.combinations(found, 2):
        assert (one[0] - other[0]).abs().max() <= 2 * limits[0]
        assert torch.nan_to_num(one[1] - other[1], nan=0.0).abs().max() <= 2 * limits[1]


def test_tensors_without_a_contiguous_last_axis_are_taken() -> None:
    tensors = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in make_inputs(small())]
    found = block_sparse_attention(*tensors, small(), kernel="triton")
    compare(found, small(), tensors, 40**-0.5)


def test_statistics_are_measured_and_used_in_the_same_kernel() -> None:
    layout = LAYOUTS[MASKED]()
    query, key, value = make_inputs(layout)
    out, lse = attention(query, key, value, need_lse=True)
    assert lse is not None
    settings = {"kernel": "reference"}
    exact = sparse_refresh(*(t.double() for t in (query, key, value)), layout, out, lse, **settings)
    mass, residual = sparse_refresh(query, key, value, layout, out, lse, kernel="triton")
    assert (mass - exact[0]).abs().max() < 2e-6
    assert (residual - exact[1]).abs().max() < 2e-6
    again = sparse_reuse(query, key, value, layout, mass, residual, kernel="triton")
    assert (again - out).abs().max() < 2e-6
    shifted = {"shift": 0.6, "clamp": True}
    found, composed = (
        sparse_reuse(query, key, value, layout, mass, residual, kernel=name, **shifted)
        for name in ("triton", "reference")
    )
    assert (found - composed).abs().max() < 2e-6


def test_heads_are_pulled_towards_their_value() -> None:
    layout = LAYOUTS["lists a head"]()
    tensors = make_inputs(layout)
    strength = torch.tensor([0.0, 0.3, 1.0])
    found = sparse_blend(*tensors, layout, strength, kernel="triton")
    plain = block_sparse_attention(*tensors, layout, kernel="triton")[0]
    composed = sparse_blend(*tensors, layout, strength, kernel="reference")
    assert torch.equal(found[:, 0], plain[:, 0])
    assert torch.equal(found[:, 2], tensors[2][:, 2])
    assert (found - composed).abs().max() < 2e-6


@pytest.mark.parametrize("chunks", [1, 3])
def test_agents_in_any_number_of_chunks(chunks: int) -> None:
    query, key, value = (torch.randn(1, 150, 2, 40).transpose(1, 2) for _ in range(3))
    agents = torch.randn(1, 2, 20, 40)
    settings = {"second_scale": 0.4, "shortcut": 0.075}
    found = agent_attention(query, agents, key, value, chunks=chunks, kernel="triton", **settings)
    tensors = [t.double() for t in (query, agents, key, value)]
    exact = attend_by_agents(*tensors, 40**-0.5, 0.4, 0.075)
    assert (found - exact).abs().max() < 4e-6


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_columns(grouped: bool, mean: bool) -> None:
    query, key, _ = (torch.randn(2, 90, 3, 40).transpose(1, 2) for _ in range(3))
    probs = explicit_probabilities(query.double(), key.double(), None, None)
    _, lse = attention(query.double(), key.double(), key.double(), need_lse=True, kernel="explicit")
    assert lse is not None
    lse[0, 1, 4] = probs[0, 1, 4] = -torch.inf
    exact = probs.clamp(min=0)[..., 5:75]
    groups = torch.rand(70, 5) if grouped else None
    exact = exact.mean(1, keepdim=True) if mean else exact
    exact = exact if groups is None else exact @ groups.double()
    settings = {"groups": groups, "mean_heads": mean}
    found = column_maps(query, key, slice(5, 75), lse, fused=True, **settings)
    composed = column_maps(query, key, slice(5, 75), lse.float(), fused=False, **settings)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() < 2e-6
    assert (composed - exact).abs().max() < 2e-6
