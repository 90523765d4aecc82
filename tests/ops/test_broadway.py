"""Edits of temporal maps by BroadWay, against plain loops and the authors' closed forms."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from attnctl.ops.broadway import (
    amplify,
    energy,
    first_high_bin,
    high_frequencies,
    onto_grid,
    restoring_factor,
    with_heads,
)

HIGH_BINS = [
    (16, 7, list(range(1, 16))),
    (16, 2, [6, 7, 8, 9, 10]),
    (16, 0, [8]),
    (8, None, list(range(1, 8))),
    (7, 0, [3, 4]),
    (7, 1, [2, 3, 4, 5]),
    (7, None, list(range(1, 7))),
    (2, 0, [1]),
    (1, None, []),
]


def maps_of(frames: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 4, 3, frames, frames, dtype=torch.float64).softmax(-1)


def spectrum(row: Tensor) -> list[complex]:
    """The Fourier transform of one row, by its definition."""
    values, count = row.tolist(), len(row)
    return [
        sum(v * cmath.exp(-2j * math.pi * j * k / count) for j, v in enumerate(values))
        for k in range(count)
    ]


def amplified(maps: Tensor, tau: int | None, factor: float) -> Tensor:
    high = high_frequencies(maps, first_high_bin(maps.shape[-1], tau))
    return amplify(maps, high, torch.full((len(maps),), factor, dtype=maps.dtype))


@pytest.mark.parametrize(("frames", "tau", "bins"), HIGH_BINS)
def test_high_frequencies_are_the_fourier_components_of_their_bins(
    frames: int, tau: int | None, bins: list[int]
) -> None:
    row = torch.randn(frames, dtype=torch.float64)
    kept = [value if k in bins else 0 for k, value in enumerate(spectrum(row))]
    expected = [
        sum(v * cmath.exp(2j * math.pi * j * k / frames) for k, v in enumerate(kept)) / frames
        for j in range(frames)
    ]
    high = high_frequencies(row, first_high_bin(frames, tau))
    assert max((abs(one.imag) for one in map(complex, expected)), default=0.0) < 1e-12
    for value, one in zip(high.tolist(), map(complex, expected), strict=True):
        assert value == pytest.approx(one.real, abs=1e-12)


@pytest.mark.parametrize(("frames", "tau"), [(16, 8), (16, -1), (7, 3), (1, 1)])
def test_the_constant_part_is_never_a_high_frequency(frames: int, tau: int) -> None:
    with pytest.raises(ValueError, match=f"does not fit a clip of {frames} frames"):
        first_high_bin(frames, tau)


@pytest.mark.parametrize(("frames", "tau"), [(16, 7), (16, 3), (7, 1)])
def test_energies_of_low_and_high_frequencies_are_those_of_the_spectrum(
    frames: int, tau: int
) -> None:
    maps = maps_of(frames, rows=1)
    first = first_high_bin(frames, tau)
    high = high_frequencies(maps, first)
    rows = list(maps.flatten(0, 3))
    sums = [0.0, 0.0]
    for row in rows:
        for k, value in enumerate(spectrum(row)):
            sums[first <= k <= frames - first] += abs(value) ** 2 / frames / len(rows)
    assert float(energy(maps - high)) == pytest.approx(sums[0], rel=1e-12)
    assert float(energy(high)) == pytest.approx(sums[1], rel=1e-12)
    assert float(energy(maps)) == pytest.approx(sum(sums), rel=1e-12)


def test_energy_lies_between_that_of_the_uniform_and_of_the_identity_map() -> None:
    uniform = torch.full((1, 2, 1, 8, 8), 1 / 8)
    assert float(energy(uniform)) == pytest.approx(1 / 8)
    assert float(energy(torch.eye(8).expand_as(uniform))) == 1.0
    assert torch.allclose(energy(torch.cat([uniform, 2 * uniform])), torch.tensor([1, 4]) / 8)


@pytest.mark.parametrize("factor", [0.5, 1.5, 10.0])
@pytest.mark.parametrize(("frames", "tau"), [(16, 7), (16, 4), (7, 1)])
def test_amplified_rows_keep_their_sum_and_gain_the_energy_that_was_asked_for(
    frames: int, tau: int, factor: float
) -> None:
    maps = maps_of(frames)
    high = high_frequencies(maps, first_high_bin(frames, tau))
    made = amplified(maps, tau, factor)
    assert torch.allclose(made.sum(-1), torch.ones_like(made[..., 0]), atol=1e-12)
    expected = energy(maps - high) + factor**2 * energy(high)
    assert torch.allclose(energy(made), expected, rtol=1e-12)


def test_the_restoring_factor_gives_the_former_energy_back() -> None:
    before, coarse = maps_of(16), maps_of(16)
    pulled = torch.lerp(before, coarse, 0.6)
    high = high_frequencies(pulled, first_high_bin(16, 5))
    factor = restoring_factor(energy(before), energy(pulled - high), energy(high))
    assert torch.all(factor > 1)
    assert torch.allclose(energy(amplify(pulled, high, factor)), energy(before), rtol=1e-12)
    more = energy(amplify(pulled, high, 1.1 * factor))
    assert torch.all(more > energy(before))


def test_a_map_that_was_not_pulled_needs_no_restoring() -> None:
    maps = maps_of(16)
    high = high_frequencies(maps, first_high_bin(16, 7))
    factor = restoring_factor(energy(maps), energy(maps - high), energy(high))
    assert torch.allclose(factor, torch.ones(2, dtype=torch.float64), atol=1e-12)


def test_the_restoring_factor_is_0_where_low_frequencies_have_more_energy_already() -> None:
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (0.2, 0.3, 0.1)]
    assert restoring_factor(*numbers).tolist() == [0.0]


@pytest.mark.parametrize("factor", [0.0, 1.5, 10.0])
def test_for_16_frames_and_tau_7_the_edit_has_a_closed_form(factor: float) -> None:
    maps = maps_of(16)
    expected = 1 / 16 + factor * (maps - 1 / 16)
    assert torch.allclose(amplified(maps, 7, factor), expected, atol=1e-12)
    assert torch.equal(amplified(maps, None, factor), amplified(maps, 7, factor))
    eye = torch.eye(16, dtype=torch.float64).expand(1, 1, 1, 16, 16)
    assert torch.allclose(amplified(eye, 7, factor), 1 / 16 + factor * (eye - 1 / 16), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_uniform_map_stays_uniform(dtype: torch.dtype) -> None:
    uniform = torch.full((1, 2, 1, 7, 7), 1 / 7, dtype=dtype)
    high = high_frequencies(uniform, 1)
    factor = restoring_factor(energy(uniform), energy(uniform - high), energy(high))
    assert factor.tolist() == [0.0]
    assert torch.allclose(amplified(uniform, None, 10.0), uniform, atol=1e-6)


def test_values_that_do_not_change_over_time_are_attended_to_as_before() -> None:
    value = torch.randn(5, dtype=torch.float64).expand(16, 5)
    maps = maps_of(16)
    assert torch.allclose(amplified(maps, 3, 10.0) @ value, maps @ value, atol=1e-12)


@pytest.mark.parametrize(("grid", "finer"), [((2, 3), (4, 6)), ((3, 2), (5, 3)), ((2, 2), (2, 2))])
def test_positions_of_a_finer_grid_take_the_map_of_the_nearest(
    grid: tuple[int, int], finer: tuple[int, int]
) -> None:
    maps = torch.randn(2, grid[0] * grid[1], 3, 4, 4)
    spread = onto_grid(maps, grid, finer)
    assert spread.shape == (2, finer[0] * finer[1], 3, 4, 4)
    for y in range(finer[0]):
        for x in range(finer[1]):
            near = (y * grid[0] // finer[0]) * grid[1] + x * grid[1] // finer[1]
            assert torch.equal(spread[:, y * finer[1] + x], maps[:, near])


def test_other_numbers_of_heads_are_given_the_mean_of_all() -> None:
    maps = maps_of(4)
    assert with_heads(maps, 3) is maps
    mean = (maps[:, :, 0] + maps[:, :, 1] + maps[:, :, 2]) / 3
    for heads in (1, 6):
        assert torch.allclose(with_heads(maps, heads).expand(-1, -1, heads, -1, -1)[:, :, -1], mean)
