"""Sparse patterns against loops over their definitions; predicted layouts; pictures of them."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from attnctl.kernels import Band, BlockLayout, attention, block_sparse_attention, patterns
from attnctl.kernels.layout_pictures import layout_picture, layout_text
from attnctl.kernels.predict import attend_by_choice, pick_by_sample, predict_layout
from tests.kernels.reference import random_qkv

GRID = (3, 5, 6)
CELLS = list(itertools.product(*map(range, GRID)))


def dense(pattern: patterns.Pattern, tokens: int) -> Tensor:
    positions = torch.arange(tokens)
    return pattern(positions[:, None], positions[None])


@pytest.mark.parametrize(
    ("window", "stride"),
    [
        ((1, 3, 3), (1, 1, 1)),
        ((3, 5, 6), (1, 1, 1)),
        ((2, 4, 3), (1, 2, 3)),
        ((1, 5, 3), (1, 5, 3)),
    ],
)
def test_a_neighbourhood_equals_its_definition(
    window: patterns.Grid, stride: patterns.Grid
) -> None:
    found = dense(patterns.neighbourhood(GRID, window, stride), len(CELLS))
    for (i, query), (j, key) in itertools.product(enumerate(CELLS), enumerate(CELLS)):
        near = True
        for q, k, size, width, step in zip(query, key, GRID, window, stride, strict=True):
            middle = min(q // step * step + step // 2, size - 1)
            start = min(max(middle - width // 2, 0), size - width)
            near &= start <= k < start + width
        assert bool(found[i, j]) == near
    assert torch.equal(found.sum(1), torch.full((len(CELLS),), math.prod(window)))


def test_a_window_as_large_as_the_grid_is_dense_and_a_stride_as_large_gives_blocks() -> None:
    assert bool(dense(patterns.neighbourhood(GRID, GRID), len(CELLS)).all())
    blocks = dense(patterns.neighbourhood((1, 4, 6), (1, 2, 3), (1, 2, 3)), 24)
    rows, columns = torch.arange(24) // 6, torch.arange(24) % 6
    block = rows // 2 * 2 + columns // 3
    assert torch.equal(blocks, block[:, None] == block)


def test_tiles_that_are_blocks_are_never_partial() -> None:
    grid, tile = (4, 8, 8), (2, 4, 4)
    pattern = patterns.tile_window(grid, tile, (3, 1, 1))
    order = patterns.tile_order(grid, tile)
    packed = BlockLayout.from_pattern(pattern, 256, q_block=32, k_block=32, order=order)
    assert packed.rule is None
    raster = BlockLayout.from_pattern(pattern, 256, q_block=32, k_block=32)
    assert torch.equal(packed.element_mask(), raster.element_mask())
    assert packed.density < raster.density
    assert packed.density == pytest.approx(packed.kept_share)


def test_tile_order_leaves_fewer_blocks_for_a_neighbourhood() -> None:
    grid = (1, 64, 64)
    pattern = patterns.neighbourhood(grid, (1, 15, 15))
    order = patterns.tile_order(grid, (1, 8, 8))
    densities = [BlockLayout.from_pattern(pattern, 4096, order=o).density for o in (None, order)]
    assert densities[1] < 0.7 * densities[0]


def test_radial_bands_halve_as_the_distance_doubles() -> None:
    grid = (9, 4, 8)
    mask = dense(patterns.radial(grid, least=1), 288).view(9, 32, 9, 32)
    assert bool(mask[3, :, 3:5].all())
    for frames, width in ((2, 16), (3, 16), (4, 8), (7, 8), (8, 4)):
        expected = (torch.arange(32)[:, None] - torch.arange(32)).abs() < width
        assert torch.equal(mask[0, :, frames], expected)
    flat = mask.reshape(288, 288)
    assert torch.equal(flat, flat.T)
    sparse = dense(patterns.radial(grid, least=16), 288).view(9, 32, 9, 32)
    assert not bool(sparse[0, :, 5].any())  # bands of 8 are kept 16 wide at every second distance
    assert bool(sparse[0, :, 4].any())
    assert bool(dense(patterns.radial(grid, first_frame=True), 288)[:, :32].all())


def test_a_frame_band_in_place_order_is_one_band() -> None:
    frames, place, text = 4, 30, 5
    pattern = patterns.with_text(patterns.frame_band(place, 3), text)
    order = patterns.place_order(frames, place, text)
    tokens = text + frames * place
    by_tokens = BlockLayout.from_pattern(pattern, tokens, q_block=16, k_block=16, order=order)
    by_rule = BlockLayout.from_pattern(
        Band(3, text, frames), tokens, q_block=16, k_block=16, order=order
    )
    assert torch.equal(by_tokens.element_mask(), by_rule.element_mask())
    assert by_rule.density < BlockLayout.from_pattern(pattern, tokens, None, 16, 16).density


def test_text_sinks_strides_unions_and_intersections() -> None:
    i, j = torch.arange(20)[:, None], torch.arange(20)[None]
    joint = dense(patterns.with_text(Band(2).allowed, 4), 20)
    assert torch.equal(joint, ((i - j).abs() <= 2) | (i < 4) | (j < 4))
    assert torch.equal(dense(patterns.strided(5, 1), 20), ((i - j) % 5 == 0) | ((i - j).abs() < 2))
    both = (patterns.sinks(3), Band(6).allowed)
    assert torch.equal(dense(patterns.union(*both), 20), (j < 3) | ((i - j).abs() <= 6))
    assert torch.equal(dense(patterns.intersection(*both), 20), (j < 3) & ((i - j).abs() <= 6))


def test_the_published_band_has_the_published_width_and_density() -> None:
    band = patterns.raster_band(4096, 0.03125)
    assert band == Band(64)
    layout = BlockLayout.from_pattern(band, 4096)
    assert layout.kept_share == pytest.approx(0.0312, abs=1e-4)
    assert layout.density == pytest.approx(0.046, abs=1e-3)


def test_impossible_patterns_are_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        patterns.neighbourhood((1, 4, 4), (1, 5, 3))
    with pytest.raises(ValueError, match="share=0"):
        patterns.raster_band(64, 0)
    with pytest.raises(ValueError, match="stride=0"):
        patterns.strided(0)
    with pytest.raises(ValueError, match="least=0"):
        patterns.radial(GRID, least=0)


def test_keeping_all_predicted_blocks_is_dense() -> None:
    query, key, value = random_qkv(2, 3, 100, 16, keys=90)
    for settings in ({"keep": 1.0}, {"keep": None, "mass": 1.0}):
        layout = predict_layout(query, key, q_block=16, k_block=16, **settings)
        out, _ = block_sparse_attention(query, key, value, layout)
        exact, _ = attention(query, key, value)
        torch.testing.assert_close(out, exact)


def test_blocks_of_equal_tokens_are_ranked_exactly() -> None:
    query, key = (torch.randn(1, 2, 8, 16).repeat_interleave(16, 2) for _ in range(2))
    layout = predict_layout(query, key, q_block=16, k_block=16, keep=0.25)
    kept = layout.element_mask()[:, :, ::16, ::16]
    scores = (query @ key.transpose(-1, -2))[:, :, ::16, ::16]
    assert torch.equal(kept, scores >= scores.topk(2, dim=-1).values[..., -1:])
    layout = predict_layout(query, key, q_block=16, k_block=16, keep=None, mass=0.6)
    kept = layout.element_mask()[:, :, ::16, ::16]
    weights = (scores / 4).softmax(-1)
    assert bool(((weights * kept).sum(-1) >= 0.6).all())
    least = weights.masked_fill(~kept, 2.0).amin(-1)
    assert bool((((weights * kept).sum(-1) - least) < 0.6).all())


def test_unlike_blocks_and_wanted_keys_are_always_kept() -> None:
    query = torch.randn(1, 1, 4, 16).repeat_interleave(16, 2)
    key = torch.randn(1, 1, 8, 16).repeat_interleave(16, 2)
    key[:, :, 32:48] = torch.randn(16, 16)
    wanted = torch.zeros(128, dtype=torch.bool)
    wanted[100] = True
    settings = {"q_block": 16, "k_block": 16, "keep": 0.1, "similarity": 0.5}
    layout = predict_layout(query, key, always_keys=wanted, **settings)
    kept = layout.element_mask()[0, 0]
    assert bool(kept[:, 32:48].all())
    assert bool(kept[:, 96:112].all())
    query[:, :, :16] = torch.randn(16, 16)
    assert bool(predict_layout(query, key, **settings).element_mask()[0, 0, :16].all())
    with pytest.raises(ValueError, match="one of keep and mass"):
        predict_layout(query, key, keep=0.5, mass=0.5)


def test_a_sample_of_rows_finds_the_layout_of_each_head() -> None:
    frames, place = 4, 16
    tokens = frames * place
    positions = torch.arange(tokens)
    # Head 0 looks at its own frame, head 1 at its own place in all frames.
    marks = [torch.eye(place)[positions // place], torch.eye(place)[positions % place]]
    query, value = 8 * torch.stack(marks)[None], torch.randn(1, 2, tokens, 16)
    spatial = BlockLayout.from_pattern(lambda q, k: q // place == k // place, tokens)
    temporal = BlockLayout.from_pattern(
        lambda q, k: q % place == k % place, tokens, order=patterns.place_order(frames, place)
    )
    layouts = [spatial, temporal]
    choice = pick_by_sample(query, query, value, layouts, rows=8)
    assert choice.tolist() == [[0, 1]]
    out, lse = attend_by_choice(query, query, value, layouts, choice)
    for head, layout in enumerate(layouts):
        exact = block_sparse_attention(query, query, value, layout)
        torch.testing.assert_close(out[:, head], exact[0][:, head])
        torch.testing.assert_close(lse[:, head], exact[1][:, head])
    with pytest.raises(ValueError, match="numbers below 2"):
        attend_by_choice(query, query, value, layouts, choice + 1)


def test_layouts_are_drawn() -> None:
    layout = BlockLayout.from_pattern(Band(20), 64, q_block=16, k_block=16)
    text = layout_text(layout)
    assert text.splitlines()[1:] == ["#++.", "+#++", "++#+", ".++#"]
    assert "Band, 87.5% of the blocks" in text.splitlines()[0]
    assert layout_picture(layout, cell_px=3).size == (12, 12)
    assert layout_picture(layout, cell_px=1).getpixel((0, 0)) == (20, 60, 120)
    assert layout_text(layout, most=2).splitlines()[1:] == ["++", "++"]
