"""Tiles, their prompts and their blending, and masks: formulas and plain loops in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.ditctrl import (
    blend_prompts,
    blend_tiles,
    blend_window,
    cut_tiles,
    foreground,
    masked_shared_attention,
    place_tiles,
    tile_prompts,
    tile_starts,
)
from tests.techniques import ditctrl_reference as reference

LAYOUTS = [(1, 13, 9), (2, 13, 6), (4, 13, 9), (3, 5, 0), (5, 4, 3), (3, 6, 5)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("prompts", [1, 2, 3, 6])
@pytest.mark.parametrize("transitions", [0, 1, 2, 3])
@pytest.mark.parametrize("longer", [0, 2])
def test_the_number_of_tiles_and_their_weights(prompts: int, transitions: int, longer: int) -> None:
    tiles = tile_prompts(prompts, transitions, longer)
    between = max(0, prompts - 2)
    assert len(tiles) == prompts + transitions * (prompts - 1) + longer * between
    assert [k + w for k, w in tiles] == sorted(k + w for k, w in tiles)
    for k in range(prompts):
        assert tiles.count((k, 0.0)) == (1 + longer if 0 < k < prompts - 1 else 1)
        blends = [w for at, w in tiles if at == k and w]
        steps = [(r + 1) / (transitions + 1) for r in range(transitions)]
        assert blends == (steps if k < prompts - 1 else [])
        assert all(0 < w < 1 for w in blends)


@pytest.mark.parametrize(("tiles", "length", "overlap"), LAYOUTS)
def test_the_length_of_a_clip_and_that_every_frame_is_covered(
    tiles: int, length: int, overlap: int
) -> None:
    starts = tile_starts(tiles, length, overlap)
    assert starts[-1] + length == length + (tiles - 1) * (length - overlap)
    covered = {frame for start in starts for frame in range(start, start + length)}
    assert covered == set(range(starts[-1] + length))


def test_blended_prompts_are_those_of_the_formula() -> None:
    prompts = drawn(3, 5, 4)
    tiles = tile_prompts(3, 2)
    made = blend_prompts(prompts, tiles)
    for one, (k, w) in zip(made, tiles, strict=True):
        after = prompts[min(k + 1, 2)].double()
        assert torch.allclose(one.double(), (1 - w) * prompts[k].double() + w * after, atol=1e-6)
    assert torch.equal(made[[0, 3, 6]], prompts)


def test_equal_prompts_blend_to_themselves_bit_for_bit() -> None:
    prompts = drawn(1, 5, 4).repeat(3, 1, 1)
    made = blend_prompts(prompts, tile_prompts(3, 3))
    assert torch.equal(made, prompts[:1].expand_as(made))


@pytest.mark.parametrize("length", [1, 2, 5, 13, 16])
def test_the_window_is_positive_symmetric_and_that_of_the_formula(length: int) -> None:
    window = blend_window(length)
    assert (window > 0).all()
    assert torch.allclose(window, window.flip(0), rtol=0, atol=1e-15)
    for place, weight in enumerate(window.tolist()):
        rising = (place + 0.5) * 2 / length
        assert weight == min(rising, 2 - rising)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("tiles", "length", "overlap"), LAYOUTS)
def test_tiles_are_blended_as_by_loops(tiles: int, length: int, overlap: int, axis: int) -> None:
    starts = tile_starts(tiles, length, overlap)
    starts = [*starts, *starts[1:-1]]  # those in the middle count twice
    values = drawn(len(starts), 3, length, 2) if axis == 2 else drawn(len(starts), length, 3, 2)
    made = blend_tiles(values, starts, axis)
    assert made.dtype == values.dtype
    assert (made - reference.blended(values, starts, axis)).abs().max() < 1e-6


def test_a_constant_stays_and_tiles_without_overlap_stand_side_by_side() -> None:
    starts = tile_starts(4, 6, 4)
    assert torch.allclose(blend_tiles(torch.full((4, 6, 2), 0.7), starts, 1), torch.tensor(0.7))
    apart = drawn(3, 6, 2)
    made = blend_tiles(apart, tile_starts(3, 6, 0), 1)
    assert torch.allclose(made[0], apart.flatten(0, 1), atol=1e-6)
    zeros = blend_tiles(torch.zeros(4, 6, 2), starts, 1)
    assert torch.equal(zeros, torch.zeros_like(zeros))


@pytest.mark.parametrize("axis", [1, 2])
def test_cutting_and_placing_are_exact(axis: int) -> None:
    long = drawn(1, 9, 9, 2)
    starts = [0, 2, 2, 4, 4]
    tiles = cut_tiles(long, starts, 5, axis)
    assert torch.equal(tiles[1], long.narrow(axis, 2, 5)[0])
    assert torch.equal(place_tiles(tiles, starts, axis), long)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_blending_predictions_is_blending_clean_clips(kind: str) -> None:
    """At one noise level the clean clip is affine in the prediction, and weights sum to one."""
    starts, length = [0, 3, 3, 6], 5
    long = drawn(1, 11, 2, seed=1).double()
    tiles = cut_tiles(long, starts, length, 1)
    predicted = drawn(4, length, 2, seed=2).double()
    alpha, sigma = 0.8, 0.6
    clean = {
        "epsilon": lambda z, p: (z - sigma * p) / alpha,
        "v_prediction": lambda z, p: alpha * z - sigma * p,
        "sample": lambda z, p: p,
        "flow": lambda z, p: z - sigma * p,
    }[kind]
    joined = clean(long, blend_tiles(predicted, starts, 1))
    of_clips = reference.blended(clean(tiles, predicted), starts, 1)
    assert (joined - of_clips).abs().max() < 1e-12


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.3, 0.9, 1.0])
def test_the_foreground_is_that_of_loops(threshold: float) -> None:
    word_map = drawn(3, 4, 5).exp()
    word_map[1] = 0.5  # a frame in which nothing stands out
    assert torch.equal(foreground(word_map, threshold), reference.foreground(word_map, threshold))
    assert foreground(word_map, 0.0).all()


@pytest.mark.parametrize("image", [slice(3, 15), slice(0, 12), slice(0, 15)])
def test_masked_attention_equals_the_two_whole_forms(image: slice) -> None:
    """Text first, text last, and without any text."""
    query, key, value = (drawn(2, 3, 15, 4, seed=s) for s in range(3))
    count = image.stop - image.start
    of_source, of_target = (drawn(count, seed=s) > 0 for s in (7, 8))
    made = masked_shared_attention(query, key, value, image, of_source, of_target, plain)
    wanted = reference.masked(query, key, value, image, of_source, of_target)
    assert (made - wanted).abs().max() < 2e-6
    text = torch.ones(15, dtype=torch.bool)
    text[image] = False
    unmasked = reference.attention(query, key, value)
    assert text.sum() == 0 or (made - unmasked)[:, :, text].abs().max() < 2e-6


@pytest.mark.parametrize("kept", [True, False])
def test_masks_of_everything_and_of_nothing_are_plain_sharing(kept: bool) -> None:
    query, key, value = (drawn(1, 2, 9, 4, seed=s) for s in range(3))
    mask = torch.full((6,), kept)
    made = masked_shared_attention(query, key, value, slice(3, 9), mask, mask, plain)
    assert torch.allclose(made, plain(query, key, value), atol=1e-6)


def test_a_part_without_any_key_sees_the_whole_source() -> None:
    query, key, value = (drawn(1, 2, 6, 4, seed=s) for s in range(3))
    nothing, everything = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    made = masked_shared_attention(query, key, value, slice(0, 6), nothing, everything, plain)
    assert torch.allclose(made, plain(query, key, value), atol=1e-6)
