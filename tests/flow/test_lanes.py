"""Trajectories and lanes: the invariants of flow attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.errors import FlowError
from attnctl.flow import ClipFlow, Lanes, build_lanes
from attnctl.flow.lanes import NONE, complete_links, keep_one_link
from attnctl.ops.lanes import (
    attend_token_lists,
    gather_lanes,
    join_frames,
    lane_attention,
    lane_bytes,
    scatter_lanes,
    split_frames,
    token_gather_bytes,
)

GRID = (5, 7)


def shift(frames: int, dx: float, dy: float, size: tuple[int, int] = GRID) -> Tensor:
    """The same motion everywhere, in pixels of a picture of this size."""
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).repeat(frames - 1, 1, *size)


def random_flow(frames: int = 6, size: tuple[int, int] = GRID, seed: int = 0) -> Tensor:
    return torch.randn(frames - 1, 2, *size, generator=torch.Generator().manual_seed(seed)) * 1.5


def tensors(lanes: Lanes, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    frames, height, width = lanes.grid
    return [torch.randn(batch, 3, frames * height * width, 4, dtype=dtype) for _ in range(3)]


def chains(flow: Tensor, lanes: Lanes) -> list[list[int]]:
    """Trajectories again, by walking from token to token with plain loops."""
    frames, height, width = lanes.grid
    cells, links = height * width, {}
    kept = {(int(a), int(b)) for a, b in kept_pairs(lanes)}
    for t in range(frames - 1):
        for y in range(height):
            for x in range(width):
                dx, dy = (round(float(v)) for v in flow[t, :, y, x])
                if 0 <= x + dx < width and 0 <= y + dy < height:
                    pair = (t * cells + y * width + x, (t + 1) * cells + (y + dy) * width + x + dx)
                    if pair in kept:
                        links[pair[0]] = pair[1]
    inner = set(links.values())
    found: list[list[int]] = []
    for token in range(frames * cells):
        if token not in inner:
            chain = [token]
            while chain[-1] in links:
                chain.append(links[chain[-1]])
            found.append(chain)
    return found


def kept_pairs(lanes: Lanes) -> Tensor:
    joined = lanes.segment[:, 1:] == lanes.segment[:, :-1]
    return torch.stack([lanes.index[:, :-1][joined], lanes.index[:, 1:][joined]], 1)


def trajectories(lanes: Lanes) -> dict[int, list[int]]:
    """Tokens of each trajectory by its root, in the order of time."""
    roots = lanes.roots().flatten().tolist()
    groups: dict[int, list[int]] = {}
    for token, root in enumerate(roots):
        groups.setdefault(root, []).append(token)
    return groups


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("carry", [False, True])
def test_trajectories_are_a_partition_with_consecutive_times(seed: int, carry: bool) -> None:
    lanes = build_lanes(random_flow(seed=seed), GRID, seed=seed, carry=carry)
    cells, groups = GRID[0] * GRID[1], trajectories(lanes)

    assert sorted(token for group in groups.values() for token in group) == list(range(6 * cells))
    assert len(groups) == lanes.count
    positions, lengths = lanes.positions().flatten(), lanes.lengths().flatten()
    for root, group in groups.items():
        times = [token // cells for token in group]
        assert times == list(range(times[0], times[0] + len(group)))
        assert group[0] == root
        assert positions[group].tolist() == list(range(len(group)))
        assert set(lengths[group].tolist()) == {len(group)}


@pytest.mark.parametrize("seed", range(4))
def test_lanes_hold_the_chains_that_walking_along_the_flow_gives(seed: int) -> None:
    flow = random_flow(seed=seed)
    lanes = build_lanes(flow, GRID)
    walked = {chain[0]: chain for chain in chains(flow, lanes)}

    assert trajectories(lanes) == walked


def test_each_row_of_cells_is_a_permutation_and_index_holds_every_token_once() -> None:
    lanes = build_lanes(random_flow(), GRID)
    cells = torch.arange(GRID[0] * GRID[1])

    for row in lanes.cells:
        assert torch.equal(row.sort().values, cells)
    assert torch.equal(lanes.index.flatten().sort().values, torch.arange(6 * len(cells)))
    assert torch.all(lanes.segment.diff(dim=1) >= 0)
    assert torch.all(lanes.segment[:, 0] == 0)


def test_no_motion_gives_one_trajectory_for_each_place() -> None:
    lanes = build_lanes(shift(6, 0, 0), GRID)

    assert lanes.is_unbroken
    assert lanes.count == GRID[0] * GRID[1]
    assert torch.equal(lanes.roots(), torch.arange(GRID[0] * GRID[1]).expand(6, -1))
    query, key, value = tensors(lanes)
    by_place = [part.unflatten(2, (6, -1)).transpose(2, 3) for part in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*by_place)
    ours = lane_attention(query, key, value, lanes)
    assert torch.allclose(ours, expected.transpose(2, 3).flatten(2, 3), atol=1e-12)


def test_flow_that_leaves_the_picture_everywhere_returns_the_value_itself() -> None:
    lanes = build_lanes(shift(6, 100, -100), GRID)

    assert lanes.count == 6 * GRID[0] * GRID[1]
    assert torch.all(lanes.lengths() == 1)
    query, key, value = tensors(lanes)
    assert torch.equal(lane_attention(query, key, value, lanes), value)


def test_a_single_frame_returns_the_value_itself() -> None:
    lanes = build_lanes(torch.zeros(0, 2, *GRID), GRID)
    query, key, value = tensors(lanes)

    assert lanes.grid == (1, *GRID)
    assert torch.allclose(lane_attention(query, key, value, lanes), value)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (0, 2), (-3, 1), (2, -4), (6, 0)])
def test_a_whole_shift_gives_the_count_that_arithmetic_gives(dx: int, dy: int) -> None:
    frames, (height, width) = 6, GRID
    lanes = build_lanes(shift(frames, dx, dy), GRID)
    cells = height * width
    kept = (height - abs(dy)) * (width - abs(dx))

    assert lanes.count == cells + (frames - 1) * (cells - kept)
    roots = lanes.roots().unflatten(1, GRID)
    for t in range(frames - 1):
        rows = slice(max(0, -dy), height - max(0, dy))
        columns = slice(max(0, -dx), width - max(0, dx))
        moved = roots[t + 1].roll((-dy, -dx), (0, 1))
        assert torch.equal(roots[t][rows, columns], moved[rows, columns])


def test_horizontal_motion_moves_along_x_only() -> None:
    lanes = build_lanes(shift(2, 2, 0), GRID)
    first, second = lanes.index[lanes.segment[:, 1] == 0].T
    cells = GRID[0] * GRID[1]

    assert torch.equal((second - cells) // GRID[1], first // GRID[1])
    assert torch.equal((second - cells) % GRID[1], first % GRID[1] + 2)


def test_motion_scales_with_width_and_height_apart() -> None:
    flow = shift(2, 24, 8, size=(40, 168))  # 8 pixels a row, 24 a column of the 5 x 7 grid
    same = build_lanes(shift(2, 1, 1), GRID)

    assert torch.equal(build_lanes(flow, GRID).roots(), same.roots())


def test_of_two_tokens_that_move_to_one_place_one_keeps_its_link() -> None:
    flow = shift(2, 0, 0)
    flow[0, 0, 2, 3] = 1.0  # (2, 3) and (2, 4) both want (2, 4)
    kept: set[bool] = set()
    for seed in range(12):
        lanes = build_lanes(flow, GRID, seed=seed)
        roots = lanes.roots().unflatten(1, GRID)
        assert lanes.count == GRID[0] * GRID[1] + 1
        at_target = int(roots[1, 2, 4])
        assert at_target in (2 * 7 + 3, 2 * 7 + 4)
        assert torch.equal(roots, build_lanes(flow, GRID, seed=seed).roots().unflatten(1, GRID))
        kept.add(at_target == 2 * 7 + 3)
    assert kept == {True, False}


def test_the_cheaper_of_two_tokens_keeps_its_link() -> None:
    flow = shift(2, 0, 0)
    flow[0, 0, 2, 3] = 1.0
    cost = torch.zeros(1, *GRID)
    for dear, winner in ((3, 4), (4, 3)):
        cost[:] = 0
        cost[0, 2, dear] = 1.0
        for seed in range(4):
            roots = build_lanes(flow, GRID, cost=cost, seed=seed).roots().unflatten(1, GRID)
            assert int(roots[1, 2, 4]) == 2 * 7 + winner


def test_links_are_kept_and_completed_without_a_target_twice() -> None:
    target = torch.tensor([2, 2, NONE, 0, 2])
    order = torch.tensor([3, 1, 0, 4, 2])
    kept = keep_one_link(target, 5, order)

    assert kept.tolist() == [NONE, 2, NONE, 0, NONE]
    assert complete_links(kept, 5).tolist() == [1, 2, 3, 0, 4]


def test_hidden_tokens_lose_their_links() -> None:
    forward, backward = shift(3, 1, 0), shift(3, -1, 0)
    backward[:, 0, 2, 4] = 3.0  # what moves to (2, 4) does not come back
    flow = ClipFlow(forward, backward)
    careless, careful = (build_lanes(flow, GRID, occlusion=o) for o in (False, True))

    assert careful.count > careless.count
    assert int(careless.roots().unflatten(1, GRID)[1, 2, 4]) == 2 * 7 + 3
    assert int(careful.roots().unflatten(1, GRID)[1, 2, 4]) == 35 + 2 * 7 + 4


def test_no_trajectory_crosses_a_cut() -> None:
    lanes = build_lanes(ClipFlow(shift(6, 0, 0), cuts=(2,)), GRID)

    assert lanes.count == 2 * GRID[0] * GRID[1]
    assert set((lanes.roots() // (GRID[0] * GRID[1])).flatten().tolist()) == {0, 3}


def test_carry_follows_a_motion_that_is_less_than_half_a_token() -> None:
    flow = shift(6, 0.4, 0)
    rounded, carried = (build_lanes(flow, GRID, carry=c) for c in (False, True))

    assert torch.equal(rounded.cells[5], rounded.cells[0])
    lane = 2 * 7 + 1
    columns = (carried.cells[:, lane] % 7).tolist()
    assert columns == [1 + round(0.4 * t) for t in range(6)]
    assert int(carried.segment[lane, -1]) == 0


@pytest.mark.parametrize("flow", [random_flow(seed=3), shift(6, 2, 1), shift(6, 0, 0)])
def test_lane_attention_equals_the_plain_loop(flow: Tensor) -> None:
    lanes = build_lanes(flow, GRID)
    query, key, value = tensors(lanes)
    value = torch.cat([value, value * 2], -1)  # another width than the query's
    expected = attend_token_lists(query, key, value, lanes.roots().flatten(), 0.3)

    assert torch.allclose(lane_attention(query, key, value, lanes, 0.3), expected, atol=1e-12)
    small = lane_attention(query, key, value, lanes, 0.3, chunk_bytes=1)
    assert torch.allclose(small, expected, atol=1e-12)


def test_the_pairing_of_what_is_left_over_does_not_matter() -> None:
    lanes = build_lanes(random_flow(seed=5), GRID)
    other = repaired(lanes)
    query, key, value = tensors(lanes)

    assert not torch.equal(lanes.cells, other.cells)
    ours, theirs = (lane_attention(query, key, value, one) for one in (lanes, other))
    assert torch.allclose(ours, theirs, atol=1e-12)


def repaired(lanes: Lanes) -> Lanes:
    """The same trajectories with the tails of lanes that break exchanged."""
    frames = lanes.grid[0]
    cells, segment = lanes.cells.clone(), lanes.segment.clone()
    for t in range(1, frames):
        broken = (segment[:, t] != segment[:, t - 1]).nonzero().flatten()
        turned = broken.roll(1)
        cells[t:, broken] = cells[t:, turned].clone()
        tails = segment[turned, t:] - segment[turned, t - 1 : t]
        segment[broken, t:] = segment[broken, t - 1 : t] + tails
    return Lanes(lanes.grid, cells, segment)


def test_rows_of_a_batch_do_not_meet() -> None:
    lanes = build_lanes(random_flow(), GRID)
    query, key, value = tensors(lanes, batch=2)
    both = lane_attention(query, key, value, lanes)

    for row in range(2):
        alone = lane_attention(
            query[row : row + 1], key[row : row + 1], value[row : row + 1], lanes
        )
        assert torch.equal(alone[0], both[row])


def test_an_output_lies_between_the_values_of_its_trajectory() -> None:
    lanes = build_lanes(random_flow(), GRID)
    query, key, value = tensors(lanes)
    out = lane_attention(query, key, value, lanes)

    for group in trajectories(lanes).values():
        part = value[:, :, group]
        low, high = part.amin(2, keepdim=True), part.amax(2, keepdim=True)
        assert torch.all((out[:, :, group] >= low - 1e-12) & (out[:, :, group] <= high + 1e-12))
    constant = lanes.roots().flatten().double()[None, None, :, None].expand(2, 3, -1, 4)
    assert torch.allclose(lane_attention(query, key, constant, lanes), constant, atol=1e-9)


def test_equal_queries_on_one_trajectory_give_equal_outputs() -> None:
    lanes = build_lanes(random_flow(), GRID)
    query, key, value = tensors(lanes)
    query = query[:, :, lanes.roots().flatten()]
    out = lane_attention(query, key, value, lanes)

    assert torch.allclose(out, out[:, :, lanes.roots().flatten()], atol=1e-12)


def test_lane_attention_has_the_gradients_of_the_plain_loop() -> None:
    lanes = build_lanes(random_flow(frames=3), GRID)
    parts = [part.requires_grad_() for part in tensors(lanes, batch=1)]
    ours = torch.autograd.grad(lane_attention(*parts, lanes).square().sum(), parts)
    loop = attend_token_lists(parts[0], parts[1], parts[2], lanes.roots().flatten())
    expected = torch.autograd.grad(loop.square().sum(), parts)

    for one, other in zip(ours, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_gathering_and_scattering_are_inverse() -> None:
    lanes = build_lanes(random_flow(), GRID)
    tokens = tensors(lanes)[0]

    assert torch.equal(scatter_lanes(gather_lanes(tokens, lanes.index), lanes.index, 3), tokens)
    folded = torch.randn(12, 3, 35, 4)
    joined = join_frames(folded, 6)
    assert torch.equal(split_frames(joined, 6), folded)
    assert torch.equal(joined[1, :, 2 * 35 : 3 * 35], folded[6 + 2])


def test_lanes_take_a_tenth_of_the_memory_of_a_gather_for_each_token() -> None:
    assert lane_bytes(32, 64 * 64, 320) <= token_gather_bytes(32, 64 * 64, 320) / 10


def test_the_tensors_of_both_forms_have_the_bytes_that_are_computed() -> None:
    frames, cells, channels = 16, 64, 3 * 8
    lanes = build_lanes(random_flow(frames, (8, 8)), (8, 8))
    tokens = torch.zeros(1, 3, frames * cells, 8)
    gathered = gather_lanes(tokens, lanes.index)
    mask = lanes.mask()
    parts = [*[gathered] * 4, mask, lanes.cells, lanes.index, lanes.segment]
    assert sum(part.nbytes for part in parts) == lane_bytes(frames, cells, channels, 4)

    own = torch.zeros(frames * cells, frames, dtype=torch.int64)
    lists = tokens[:, :, own]
    listed = [lists, lists, own, torch.zeros_like(own, dtype=torch.bool)]
    assert sum(part.nbytes for part in listed) == token_gather_bytes(frames, cells, channels, 4)


def test_large_grids_keep_every_token_once() -> None:
    lanes = build_lanes(random_flow(32, (128, 128)) * 2, (64, 64))

    assert lanes.cells.shape == (32, 4096)
    assert torch.equal(lanes.index.flatten().sort().values, torch.arange(32 * 4096))


def test_mistakes_are_explained() -> None:
    with pytest.raises(FlowError, match="backward"):
        build_lanes(shift(3, 0, 0), GRID, occlusion=True)
    with pytest.raises(FlowError, match="at least one token"):
        build_lanes(shift(3, 0, 0), (0, 4))
    with pytest.raises(FlowError, match="cost"):
        build_lanes(shift(3, 0, 0), GRID, cost=torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="210 tokens"):
        lanes = build_lanes(shift(3, 0, 0), GRID)
        lane_attention(*[torch.zeros(1, 1, 210, 4)] * 3, lanes)
