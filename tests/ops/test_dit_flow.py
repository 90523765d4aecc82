"""DiTFlow's numbers: motion flows against loops, the invariants, the loss, learning rates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.ops.dit_flow import (
    hard_motion_flow,
    learning_rate,
    mean_logits,
    motion_loss,
    soft_motion_flow,
)

GRID = (2, 3, 4)
FRAMES, ROWS, COLUMNS = GRID
CELLS = ROWS * COLUMNS
SCALE = 0.4


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Query and key of three heads."""
    return (
        draw(3, FRAMES * CELLS, 5, seed=seed),
        draw(3, FRAMES * CELLS, 5, seed=seed + 1),
    )


def one_hot(targets: list[int], sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """One head in which cell i of every frame looks at cell ``targets[i]`` of every frame."""
    key = torch.eye(CELLS, dtype=torch.float64).repeat(FRAMES, 1)
    return (sharpness * key[:CELLS][targets].repeat(FRAMES, 1))[None], key[None]


def looped(query: Tensor, key: Tensor, temperature: float | None) -> Tensor:
    """Both flows, one cell at a time; ``None`` is the hard one."""
    made = torch.zeros(FRAMES, FRAMES, CELLS, 2, dtype=torch.float64)
    for a in range(FRAMES):
        for b in range(FRAMES):
            for i in range(CELLS):
                logits = torch.stack([
                    sum(
                        torch.dot(query[h, a * CELLS + i], key[h, b * CELLS + j]) * SCALE
                        for h in range(len(query))
                    ) / len(query)
                    for j in range(CELLS)
                ])  # fmt: skip
                probs = torch.zeros(CELLS, dtype=torch.float64)
                if temperature is None:
                    probs[int(logits.argmax())] = 1
                else:
                    probs = (temperature * logits).softmax(0)
                for j in range(CELLS):
                    made[a, b, i, 0] += probs[j] * (j % COLUMNS - i % COLUMNS)
                    made[a, b, i, 1] += probs[j] * (j // COLUMNS - i // COLUMNS)
    return made


def test_the_mean_of_all_heads_is_one_product() -> None:
    query, key = pair()
    apart = torch.stack([SCALE * q @ k.T for q, k in zip(query, key, strict=True)]).mean(0)
    assert torch.allclose(mean_logits(query, key, SCALE), apart, atol=1e-12)


def test_both_flows_equal_the_loop() -> None:
    query, key = pair()
    soft = soft_motion_flow(query, key, GRID, SCALE, 2.0)
    assert torch.allclose(soft, looped(query, key, 2.0), atol=1e-12)
    assert torch.equal(hard_motion_flow(query, key, GRID), looped(query, key, None))


def test_uniform_attention_points_to_the_centre() -> None:
    query, key = pair()
    flow = soft_motion_flow(query, 0 * key, GRID, SCALE)
    for place in range(CELLS):
        centre = torch.tensor([(COLUMNS - 1) / 2, (ROWS - 1) / 2], dtype=torch.float64)
        own = torch.tensor([place % COLUMNS, place // COLUMNS], dtype=torch.float64)
        assert torch.allclose(flow[0, 1, place], centre - own, atol=1e-12)


def test_the_identity_does_not_move_and_a_shift_is_its_own_flow() -> None:
    still = one_hot(list(range(CELLS)), 1e4)
    assert soft_motion_flow(*still, GRID, 1.0).abs().max() < 1e-9
    assert not hard_motion_flow(*still, GRID).any()
    right = [row * COLUMNS + min(column + 1, COLUMNS - 1)
             for row in range(ROWS) for column in range(COLUMNS)]  # fmt: skip
    for flow in (
        soft_motion_flow(*one_hot(right, 1e4), GRID, 1.0),
        hard_motion_flow(*one_hot(right), GRID),
    ):
        inside = flow.unflatten(2, (ROWS, COLUMNS))[..., :-1, :]
        assert torch.allclose(inside, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-9)


def test_a_sharp_soft_flow_is_the_hard_one_and_no_flow_leaves_the_grid() -> None:
    query, key = pair()
    hard = hard_motion_flow(query, key, GRID)
    assert torch.allclose(soft_motion_flow(query, key, GRID, SCALE, 1e4), hard, atol=1e-6)
    for flow in (hard, soft_motion_flow(query, key, GRID, SCALE)):
        assert flow[..., 0].abs().max() <= COLUMNS - 1
        assert flow[..., 1].abs().max() <= ROWS - 1


def test_the_argmax_does_not_depend_on_the_scale() -> None:
    query, key = pair()
    assert torch.equal(hard_motion_flow(3 * query, key, GRID), hard_motion_flow(query, key, GRID))


def test_the_loss_counts_the_cells_that_move_in_the_reference_alone() -> None:
    reference = torch.zeros(FRAMES, FRAMES, CELLS, 2)
    reference[0, 1, 3] = torch.tensor([2.0, 0.0])
    reference[1, 0, 5] = torch.tensor([0.0, -1.0])
    flow = torch.full_like(reference, 1.0)
    assert motion_loss(reference, flow) == pytest.approx((1 + 1 + 1 + 4) / 4)
    flow[0, 0] = 9.0
    assert motion_loss(reference, flow) == pytest.approx(7 / 4)


def test_the_loss_is_zero_where_nothing_moves_and_where_flows_agree() -> None:
    still = torch.zeros(FRAMES, FRAMES, CELLS, 2, dtype=torch.float64)
    query, key = pair()
    query.requires_grad_()
    loss = motion_loss(still, soft_motion_flow(query, key, GRID, SCALE))
    loss.backward()
    assert float(loss.detach()) == 0
    assert query.grad is not None
    assert not query.grad.any()
    targets = torch.randperm(CELLS, generator=torch.Generator().manual_seed(0)).tolist()
    sharp, keys = one_hot(targets, 1e3)
    sharp.requires_grad_()
    same = motion_loss(hard_motion_flow(sharp, keys, GRID), soft_motion_flow(sharp, keys, GRID, 1))
    same.backward()
    assert same < 1e-12
    assert sharp.grad is not None
    assert sharp.grad.abs().max() < 1e-9


def test_half_precision_is_widened() -> None:
    query, key = (x.bfloat16() for x in pair())
    assert soft_motion_flow(query, key, GRID, SCALE).dtype == torch.float32


def test_rates_fall_in_a_line_that_ends_behind_the_last_step() -> None:
    rates = [learning_rate(place, 10, (0.002, 0.001)) for place in range(10)]
    eleven = torch.linspace(0.002, 0.001, 11, dtype=torch.float64)
    assert rates == pytest.approx(eleven[:10].tolist())
