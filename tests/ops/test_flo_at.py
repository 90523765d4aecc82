"""Maps warped along the motion: directions, borders, sums, and mixing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl.ops.flo_at import follow_map, trace_back, warp_map

SIDE = 4
N = SIDE * SIDE
AXES = ("both", "query", "key")


def probabilities(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def uniform_flow(dx: float, dy: float, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.tensor([float(dx), float(dy)])[:, None, None].expand(2, height, width).clone()


def random_flow(height: int = SIDE, width: int = SIDE, size: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return size * torch.randn(2, height, width, generator=generator)


def follow(own: Tensor, previous: Tensor, flow: Tensor, **settings: Any) -> Tensor:
    chosen = {"interpolation": "bilinear", "least_motion_cells": 0.0}
    trace = trace_back(flow, **{k: settings.pop(k, v) for k, v in chosen.items()})
    return follow_map(own, previous, trace, **settings)


def sampling(flow: Tensor) -> Tensor:
    """The warp of one axis as a matrix ``(n, n)``, token by token."""
    height, width = flow.shape[-2:]
    matrix = torch.zeros(height * width, height * width)
    for row in range(height):
        for column in range(width):
            x = min(max(column + float(flow[0, row, column]), 0.0), width - 1.0)
            y = min(max(row + float(flow[1, row, column]), 0.0), height - 1.0)
            rows = (1 - (torch.arange(height) - y).abs()).clamp_min(0)
            columns = (1 - (torch.arange(width) - x).abs()).clamp_min(0)
            matrix[row * width + column] = torch.outer(rows, columns).flatten()
    return matrix


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 6)])
def test_a_warp_is_the_product_with_its_sampling_matrix(axes: str, grid: tuple[int, int]) -> None:
    flow = random_flow(*grid)
    matrix, eye = sampling(flow), torch.eye(grid[0] * grid[1])
    previous = probabilities(2, 3, *eye.shape)
    left, right = (eye if axes == one else matrix for one in ("key", "query"))
    expected = left @ previous @ right.T
    assert torch.allclose(warp_map(previous, trace_back(flow), axes), expected, atol=1e-6)


@pytest.mark.parametrize("axes", AXES)
def test_without_motion_two_maps_are_mixed(axes: str) -> None:
    own, previous = probabilities(2, N, N), probabilities(2, N, N, seed=1)
    mixed = follow(own, previous, uniform_flow(0, 0), own_weight=0.3, axes=axes)
    assert torch.allclose(mixed, 0.3 * own + 0.7 * previous, atol=1e-6)
    assert torch.allclose(follow(own, own, uniform_flow(0, 0), axes=axes), own, atol=1e-6)
    assert torch.equal(warp_map(previous, trace_back(uniform_flow(0, 0)), axes), previous)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("own_weight", [0.0, 0.5, 1.0])
def test_rows_stay_probabilities(axes: str, own_weight: float) -> None:
    own, previous = probabilities(2, N, N), probabilities(2, N, N, seed=1)
    for interpolation in ("bilinear", "nearest"):
        made = follow(
            own, previous, random_flow(), own_weight=own_weight, axes=axes,
            interpolation=interpolation,
        )  # fmt: skip
        assert (made >= 0).all()
        assert torch.allclose(made.sum(-1), torch.ones(2, N), atol=1e-6)
        assert torch.allclose(made, own, atol=1e-6) == (own_weight == 1.0)


def test_a_shift_moves_the_content_rigidly() -> None:
    previous = probabilities(N, N).view(SIDE, SIDE, SIDE, SIDE)
    flow = uniform_flow(-1, 0)  # what is here now was one column further left
    warped = warp_map(previous.view(N, N), trace_back(flow), "both").view(SIDE, SIDE, SIDE, SIDE)
    assert torch.equal(warped[:, 1:, :, 1:], previous[:, :-1, :, :-1])
    down = warp_map(previous.view(N, N), trace_back(uniform_flow(0, -2)), "both")
    assert torch.equal(down.view(SIDE, SIDE, SIDE, SIDE)[2:, :, 2:], previous[:-2, :, :-2])


def test_an_object_that_moves_right_takes_the_row_from_its_left() -> None:
    own, previous = torch.full((N, N), 1 / N), torch.full((N, N), 1 / N)
    previous[1 * SIDE + 1] = torch.eye(N)[7]  # the object, at row 1 and column 1
    flow = torch.zeros(2, SIDE, SIDE)
    flow[0, 1, 2] = -1.0  # now it is at column 2
    made = follow(own, previous, flow, own_weight=0.0, axes="query")
    assert torch.equal(made[1 * SIDE + 2], torch.eye(N)[7])
    assert torch.equal(made[1 * SIDE + 3], own[0])


def test_nearest_rows_are_rows_and_constant_values_stay_constant() -> None:
    previous = probabilities(N, N)
    warped = warp_map(previous, trace_back(random_flow(), "nearest"), "query")
    assert all(any(torch.equal(row, one) for one in previous) for row in warped)
    assert not torch.equal(warped, previous)
    value = torch.tensor([[2.0, -1.0]]).expand(N, 2)
    assert torch.allclose(warped @ value, value, atol=1e-6)


@pytest.mark.parametrize("axes", AXES)
def test_what_was_outside_of_the_picture_keeps_its_own_map(axes: str) -> None:
    own, previous = probabilities(N, N), probabilities(N, N, seed=1)
    assert torch.equal(follow(own, previous, uniform_flow(99, 0), axes=axes), own)
    made = follow(own, previous, uniform_flow(-1, 0), own_weight=0.0, axes=axes)
    entered = torch.arange(N) % SIDE == 0
    assert torch.equal(made[entered], own[entered])
    assert not torch.isclose(made[~entered], own[~entered]).all(dim=-1).any()
    if axes != "query":
        shares = made[~entered][:, entered] / own[~entered][:, entered]
        assert torch.allclose(shares, shares[:, :1].expand_as(shares), atol=1e-4)


def test_regions_choose_the_rows() -> None:
    own, previous = probabilities(N, N), probabilities(N, N, seed=1)
    flow = torch.zeros(2, SIDE, SIDE)
    flow[1, 1:3] = 0.5
    moving = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    moving[1:3] = True
    rows = moving.flatten()
    whole = follow(own, previous, flow, least_motion_cells=0.2)
    part = follow(own, previous, flow, least_motion_cells=0.2, region="moving")
    rest = follow(own, previous, flow, least_motion_cells=0.2, region="static")
    assert torch.equal(part[rows], whole[rows])
    assert torch.equal(part[~rows], own[~rows])
    assert torch.equal(rest[rows], own[rows])
    assert torch.allclose(rest[~rows], (own + previous)[~rows] / 2, atol=1e-6)
    none = follow(own, previous, flow, least_motion_cells=0.6, region="moving")
    assert torch.equal(none, own)


def test_a_row_without_any_mass_left_keeps_its_own() -> None:
    own, previous = probabilities(N, N), torch.zeros(N, N)
    assert torch.equal(follow(own, previous, uniform_flow(0, 0), own_weight=0.0), own)
