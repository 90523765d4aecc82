"""Invariants of agent attention."""

from __future__ import annotations

import torch

from attnctl.kernels import agent_attention
from attnctl.ops.agents import attend_by_agents


def tensors(agents: int = 5) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 20, 8, dtype=torch.float64)
    return query, torch.randn(2, 3, agents, 8, dtype=torch.float64), key, value


def test_both_stages_equal_their_written_form() -> None:
    query, agents, key, value = tensors()
    first = torch.softmax(0.3 * agents @ key.mT, -1)
    second = torch.softmax(0.7 * query @ agents.mT, -1)
    expected = second @ (first @ value) + 0.075 * value
    ours = attend_by_agents(query, agents, key, value, 0.3, 0.7, 0.075)
    assert torch.allclose(ours, expected, atol=1e-12)
    fast = agent_attention(query, agents, key, value, scale=0.3, second_scale=0.7, shortcut=0.075)
    assert torch.allclose(fast, expected, atol=1e-12)


def test_a_value_that_is_the_same_everywhere_is_only_lengthened() -> None:
    query, agents, key, value = tensors()
    value = value[:, :, :1].expand_as(value)
    ours = attend_by_agents(query, agents, key, value, 0.3, 0.7, 0.075)
    assert torch.allclose(ours, 1.075 * value, atol=1e-12)


def test_a_single_agent_gives_all_queries_the_same() -> None:
    query, agents, key, value = tensors(agents=1)
    ours = attend_by_agents(query, agents, key, value, 0.3, 0.7, 0.0)
    assert torch.allclose(ours, ours[:, :, :1].expand_as(ours), atol=1e-12)


def test_agents_that_are_the_queries_multiply_two_maps() -> None:
    query, _, key, value = tensors()
    scale = 8**-0.5
    expected = torch.softmax(scale * query @ query.mT, -1) @ torch.softmax(
        scale * query @ key.mT, -1
    )
    ours = attend_by_agents(query, query, key, value, scale, scale, 0.0)
    assert torch.allclose(ours, expected @ value, atol=1e-12)
