"""Token merging against loops over single tokens, and its invariants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.ops.merging import (
    cell_destinations,
    merge_map,
    merge_tokens,
    rank_sources,
    spread_tokens,
)

GRIDS = [(1, 4, 4, 2), (1, 5, 7, 2), (1, 8, 4, 4), (1, 9, 6, 3), (3, 4, 5, 2)]


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt())


def groups_by_loops(tokens: Tensor, destinations: list[int], merged: int) -> list[set[int]]:
    """Tokens ``(N, C)`` of one picture: which become one, in float64."""
    tokens, found = tokens.double(), []
    for source in range(len(tokens)):
        if source in destinations:
            continue
        likeness = [cosine(tokens[source], tokens[d]) for d in destinations]
        best = max(range(len(destinations)), key=lambda d: likeness[d])
        found.append((likeness[best], source, destinations[best]))
    groups = {d: {d} for d in destinations}
    found.sort(key=lambda one: -one[0])
    for _, source, destination in found[:merged]:
        groups[destination].add(source)
    return [*groups.values(), *({source} for _, source, _ in found[merged:])]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("key", [None, (0, 1, "a")])
def test_each_cell_has_one_destination(grid: tuple[int, ...], key: tuple[int | str, ...]) -> None:
    frames, height, width, cell = grid
    found = cell_destinations(*grid, key=key).tolist()
    cells = set()
    for position in found:
        frame, place = divmod(position, height * width)
        y, x = divmod(place, width)
        assert y < height // cell * cell
        assert x < width // cell * cell
        cells.add((frame, y // cell, x // cell))
        if key is None:
            assert (y % cell, x % cell) == (0, 0)
    assert len(cells) == len(found) == frames * (height // cell) * (width // cell)
    assert found == sorted(found)


def test_destinations_depend_on_their_key_alone() -> None:
    state = torch.get_rng_state()
    first = cell_destinations(1, 16, 16, 2, key=(0, 3, "layer"))
    torch.manual_seed(5)
    again = cell_destinations(1, 16, 16, 2, key=(0, 3, "layer"))
    torch.set_rng_state(state)
    assert torch.equal(first, again)
    assert not torch.equal(first, cell_destinations(1, 16, 16, 2, key=(0, 4, "layer")))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_map_equals_loops(grid: tuple[int, ...], share: float) -> None:
    torch.manual_seed(sum(grid))
    frames, height, width, _ = grid
    tokens = torch.randn(2, frames * height * width, 6)
    destinations = cell_destinations(*grid, key=(1,))
    ranking = rank_sources(tokens, destinations)
    merged = int(share * ranking.sources.shape[1])
    chosen = merge_map(ranking, merged)
    assert chosen.count == tokens.shape[1] - merged
    for picture in range(2):
        expected = groups_by_loops(tokens[picture], destinations.tolist(), merged)
        rows = chosen.rows[picture]
        ours = [set((rows == row).nonzero().flatten().tolist()) for row in range(chosen.count)]
        assert sorted(map(sorted, ours)) == sorted(map(sorted, expected))


@pytest.mark.parametrize("tokens", [slice(0, 35), slice(4, 39)])
def test_merging_averages_and_spreading_copies(tokens: slice) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, tokens.stop + 2, 4, dtype=torch.float64)
    hidden = torch.randn(2, 35, 6)
    chosen = merge_map(rank_sources(hidden, cell_destinations(1, 5, 7, 2)), 17)
    merged = merge_tokens(values, tokens, chosen)
    spread = spread_tokens(merged, tokens, chosen)
    assert merged.shape == (2, 3, values.shape[2] - 17, 4)
    assert spread.shape == values.shape
    for picture in range(2):
        for token in range(35):
            alike = (chosen.rows[picture] == chosen.rows[picture, token]).nonzero().flatten()
            expected = values[picture][:, tokens][:, alike].sum(1) / len(alike)
            got = spread[picture][:, tokens][:, token]
            assert torch.allclose(got, expected, atol=1e-12)
    outside = [i for i in range(values.shape[2]) if not tokens.start <= i < tokens.stop]
    assert torch.equal(spread[:, :, outside], values[:, :, outside])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_that_are_all_equal_stay(dtype: torch.dtype) -> None:
    values = torch.randn(1, 2, 1, 4).expand(2, -1, 64, -1).to(dtype)
    hidden = torch.ones(2, 64, 8, dtype=dtype)
    chosen = merge_map(rank_sources(hidden, cell_destinations(1, 8, 8, 4)), 60)
    back = spread_tokens(merge_tokens(values, slice(0, 64), chosen), slice(0, 64), chosen)
    assert back.dtype == dtype
    assert torch.allclose(back, values, atol=1e-6)


def test_every_token_counts_once() -> None:
    torch.manual_seed(0)
    hidden, values = torch.randn(2, 64, 8), torch.randn(2, 2, 64, 4, dtype=torch.float64)
    chosen = merge_map(rank_sources(hidden, cell_destinations(1, 8, 8, 2)), 30)
    merged = merge_tokens(values, slice(0, 64), chosen)
    members = torch.stack([torch.bincount(rows, minlength=chosen.count) for rows in chosen.rows])
    assert int(members.min()) >= 1
    weighted = (merged * members[:, None, :, None]).sum(2)
    assert torch.allclose(weighted, values.sum(2), atol=1e-12)


def test_pictures_of_a_batch_do_not_meet() -> None:
    torch.manual_seed(0)
    hidden, destinations = torch.randn(3, 64, 8), cell_destinations(1, 8, 8, 2, key=(2,))
    whole = merge_map(rank_sources(hidden, destinations), 20)
    order = [2, 0, 1]
    mixed = merge_map(rank_sources(hidden[order], destinations), 20)
    assert torch.equal(mixed.rows, whole.rows[order])


def test_averaging_commutes_with_a_projection() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 64, 8, dtype=torch.float64)
    layer = torch.nn.Linear(8, 12).double()
    chosen = merge_map(rank_sources(hidden, cell_destinations(1, 8, 8, 2)), 40)
    image = slice(0, 64)
    before = layer(merge_tokens(hidden[:, None], image, chosen)[:, 0])
    after = merge_tokens(layer(hidden)[:, None], image, chosen)[:, 0]
    assert torch.allclose(before, after, atol=1e-12)


def test_merging_has_gradients() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1, 16, 4)
    values = torch.randn(1, 2, 16, 3, dtype=torch.float64, requires_grad=True)
    chosen = merge_map(rank_sources(hidden, cell_destinations(1, 4, 4, 2)), 8)

    def there_and_back(given: Tensor) -> Tensor:
        image = slice(0, 16)
        return spread_tokens(merge_tokens(given, image, chosen).sin(), image, chosen)

    assert torch.autograd.gradcheck(there_and_back, values)
