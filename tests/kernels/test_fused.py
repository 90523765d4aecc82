"""What is done to sparse attention before it is used: statistics, blends, agents, columns."""

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
from tests.kernels.layouts import LAYOUTS, make_inputs
from tests.kernels.reference import random_qkv

EMPTY_ROWS = "element masks with empty rows"


def test_on_the_step_of_the_refresh_the_repair_gives_dense_attention() -> None:
    layout = LAYOUTS[EMPTY_ROWS]()
    query, key, value = (t.double() for t in make_inputs(layout))
    out, lse = attention(query, key, value, need_lse=True)
    assert lse is not None
    mass, residual = sparse_refresh(query, key, value, layout, out, lse)
    assert (sparse_reuse(query, key, value, layout, mass, residual) - out).abs().max() < 1e-14
    assert bool(((mass >= 0) & (mass <= 1 + 1e-12)).all())
    probs = explicit_probabilities(query, key, None, None)
    kept = (probs * layout.element_mask()).sum(-1)
    assert (mass - kept).abs().max() < 1e-13
    empty = ~layout.element_mask().any(-1)[0, 0]
    assert bool((mass[:, :, empty] == 0).all())
    assert torch.equal(residual[:, :, empty], out[:, :, empty])


def test_a_full_layout_leaves_nothing_to_repair() -> None:
    layout = BlockLayout.from_pattern(Band(100), 60)
    query, key, value = (t.double() for t in random_qkv(1, 2, 60, 8, keys=60))
    out, lse = attention(query, key, value, need_lse=True)
    assert lse is not None
    mass, residual = sparse_refresh(query, key, value, layout, out, lse)
    assert (mass - 1).abs().max() < 1e-14
    assert residual.abs().max() < 1e-14


def test_the_shift_is_added_and_clamped_if_wished() -> None:
    layout = LAYOUTS["band"]()
    query, key, value = (t.double() for t in make_inputs(layout))
    kept, _ = block_sparse_attention(query, key, value, layout)
    mass = torch.rand(2, 3, 100, dtype=torch.float64)
    residual = torch.randn_like(kept)
    for clamp in (False, True):
        found = sparse_reuse(query, key, value, layout, mass, residual, shift=0.5, clamp=clamp)
        weight = (mass + 0.5).clamp(max=1.0 if clamp else 9.0)
        assert (found - (weight[..., None] * kept + residual)).abs().max() < 1e-13


def test_heads_are_blended_one_by_one_and_linearly() -> None:
    layout = LAYOUTS["lists a head"]()
    tensors = [t.double() for t in make_inputs(layout)]
    plain, _ = block_sparse_attention(*tensors, layout)
    found = sparse_blend(*tensors, layout, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(found[:, 0], plain[:, 0])
    assert torch.equal(found[:, 2], tensors[2][:, 2])
    assert (found[:, 1] - (0.75 * plain[:, 1] + 0.25 * tensors[2][:, 1])).abs().max() < 1e-14
    each = sparse_blend(*tensors, layout, torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert torch.equal(each[0], plain[0])
    assert torch.equal(each[1], tensors[2][1])
    with pytest.raises(ValueError, match=r"strength must be \(3,\) or \(2, 3\)"):
        sparse_blend(*tensors, layout, torch.zeros(2))


def test_agents_equal_two_explicit_softmaxes() -> None:
    query, key, value = (t.double() for t in random_qkv(2, 3, 50, 8, keys=50))
    agents = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    found = agent_attention(query, agents, key, value, second_scale=0.7, shortcut=0.1)
    gathered = (agents @ key.mT / 8**0.5).softmax(-1) @ value
    exact = (0.7 * query @ agents.mT).softmax(-1) @ gathered + 0.1 * value
    assert (found - exact).abs().max() < 1e-14
    assert (attend_by_agents(query, agents, key, value, 8**-0.5, 0.7, 0.1) - exact).abs().max() < (
        1e-14
    )


def test_agents_of_a_constant_value_return_it_and_one_agent_serves_all_alike() -> None:
    query, key, _ = random_qkv(1, 2, 30, 8, keys=30)
    agents = torch.randn(1, 2, 5, 8)
    constant = torch.full_like(key, 2.0)
    out = agent_attention(query, agents, key, constant, shortcut=0.075)
    torch.testing.assert_close(out, torch.full_like(out, 2.15))
    single = agent_attention(query, agents[:, :, :1], key, torch.randn_like(key))
    torch.testing.assert_close(single, single[:, :, :1].expand_as(single))


@pytest.mark.parametrize("mean", [False, True])
def test_columns_from_the_log_sum_exp_are_those_of_the_whole_map(mean: bool) -> None:
    query, key, _ = (t.double() for t in random_qkv(2, 4, 20, 8, keys=600, key_heads=2))
    probs = explicit_probabilities(query, key, None, None)
    _, lse = attention(query, key, key, need_lse=True, kernel="explicit")
    assert lse is not None
    tokens = torch.tensor([3, 599, 3])
    exact = probs[..., tokens].mean(1, keepdim=True) if mean else probs[..., tokens]
    found = column_maps(query, key, tokens, lse, mean_heads=mean)
    assert (found - exact).abs().max() < 1e-14
    groups = torch.rand(3, 2, dtype=torch.float64)
    found = column_maps(query, key, tokens, lse, mean_heads=mean, groups=groups)
    assert (found - exact @ groups).abs().max() < 1e-14
    with pytest.raises(ValueError, match=r"groups must be \(3 columns, groups\)"):
        column_maps(query, key, tokens, lse, groups=torch.rand(2, 2))
