"""Masks of instructions, biases of their words, and guidance that stays inside."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attnctl.ops.focus_on_instruction import (
    focused_prediction,
    instruction_bias,
    instruction_mask,
    instruction_weights,
    shared_cells,
)
from attnctl.ops.guidance import image_guidance


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def enhanced(word_map: list[list[float]], side: int) -> list[list[float]]:
    """Blur, min-max, square and bilinear sizes, one cell at a time."""
    old = len(word_map)
    line = [math.exp(-2), 1.0, math.exp(-2)]
    total = sum(line) ** 2

    def inside(place: int) -> int:
        place = abs(place)
        return 2 * (old - 1) - place if place >= old else place

    blurred = [
        [
            sum(
                line[i + 1] * line[j + 1] / total * word_map[inside(y + i)][inside(x + j)]
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
            )
            for x in range(old)
        ]
        for y in range(old)
    ]
    low, high = min(map(min, blurred)), max(map(max, blurred))
    square = [[((v - low) / (high - low)) ** 2 for v in row] for row in blurred]

    def between(place: int) -> list[tuple[int, float]]:
        at = min(max((place + 0.5) * old / side - 0.5, 0.0), old - 1.0)
        first = min(int(at), old - 2)
        return [(first, 1 - (at - first)), (first + 1, at - first)]

    return [
        [
            sum(a * b * square[i][j] for i, a in between(y) for j, b in between(x))
            for x in range(side)
        ]
        for y in range(side)
    ]


@pytest.mark.parametrize("side", [4, 8, 12])
def test_a_mask_is_what_the_loops_give(side: int) -> None:
    word_map = random(4, 4).abs()
    expected = torch.tensor(enhanced(word_map.tolist(), side))
    for threshold in (0.1, 0.3, 0.7):
        found = instruction_mask(word_map, (side, side), threshold)
        assert torch.equal(found, expected >= threshold)
        assert 0 < int(found.sum()) < side * side


def test_the_mask_of_a_delta_map_is_the_resized_delta() -> None:
    delta = torch.zeros(8, 8)
    delta[2, 5] = 0.7
    same = instruction_mask(delta, (8, 8), 0.3)
    assert same.nonzero().tolist() == [[2, 5]]
    larger = torch.zeros(32, 32, dtype=torch.bool)
    places = [(y, x) for y in range(32) for x in range(32)]
    for y, x in places:
        near = (max(0.0, 1 - abs((y + 0.5) / 4 - 2.5)), max(0.0, 1 - abs((x + 0.5) / 4 - 5.5)))
        larger[y, x] = near[0] * near[1] >= 0.3
    assert torch.equal(instruction_mask(delta, (32, 32), 0.3), larger)
    assert 12 <= int(larger.sum()) <= 24


def test_thresholds_from_everything_to_nothing() -> None:
    word_map = random(8, 8).abs()
    assert instruction_mask(word_map, (16, 16), 0.0).all()
    assert not instruction_mask(word_map, (16, 16), 1.01).any()
    shares = [int(instruction_mask(word_map, (16, 16), t).sum()) for t in (0.1, 0.3, 0.5, 0.9)]
    assert shares == sorted(shares, reverse=True)
    assert torch.equal(
        instruction_mask(word_map, (16, 16), 0.3), instruction_mask(5 * word_map, (16, 16), 0.3)
    )


def test_a_map_that_points_nowhere_gives_a_full_mask() -> None:
    assert instruction_mask(torch.full((4, 4), 0.2), (8, 8), 0.3).all()
    low = torch.full((4, 4), 0.2)
    low[1, 1] = 0.25
    assert not instruction_mask(low, (4, 4), 0.3).all()
    assert instruction_mask(low, (4, 4), 0.3, least_peak=1.5).all()
    low[1, 1] = 2.0
    assert not instruction_mask(low, (4, 4), 0.3, least_peak=1.5).all()


def test_words_are_hidden_outside_their_masks_and_raised_inside() -> None:
    masks = torch.tensor([[True, True, False, False], [False, True, True, False]])
    members = torch.zeros(2, 6, dtype=torch.bool)
    members[0, [1, 2]], members[1, [2, 4]] = True, True  # token 2 belongs to both
    low = torch.finfo(torch.float32).min / 2
    bias = instruction_bias(masks, members, 0.5, 1.0, torch.float32)
    assert bias.tolist() == [
        [0.0, 0.5, 0.5, 0.0, low, 0.0],
        [0.0, 0.5, 0.5, 0.0, 0.5, 0.0],
        [0.0, low, 0.5, 0.0, 0.5, 0.0],
        [0.0, low, low, 0.0, low, 0.0],
    ]
    probs = (random(4, 6) + bias).softmax(-1)
    assert (probs[bias == low] == 0).all()
    half = instruction_bias(masks, members, 0.5, 0.5, torch.float32)
    assert torch.equal(half[bias == 0.5], torch.full((7,), 0.25))
    assert half[bias == low].exp().allclose(torch.tensor(0.5))


def test_the_order_of_instructions_does_not_matter() -> None:
    masks, members = random(3, 10) > 0, random(3, 8, seed=1) > 0.5
    weights = torch.tensor([0.5, 1.0, 2.0])
    order = torch.tensor([2, 0, 1])
    assert torch.equal(shared_cells(masks, members), shared_cells(masks[order], members[order]))
    areas = masks.unflatten(1, (2, 5))
    first = instruction_weights(areas, weights)
    assert torch.equal(first, instruction_weights(areas[order], weights[order]))


def test_overlapping_instructions_have_the_largest_weight() -> None:
    masks = torch.tensor([[[True, True, False, False]], [[False, True, True, False]]])
    assert instruction_weights(masks, torch.tensor([0.5, 2.0])).tolist() == [[0.5, 2.0, 2.0, 0.0]]


def test_the_formula_of_the_pipeline_gives_the_masked_guidance() -> None:
    text, image, none = (random(2, 4, 6, 6, seed=seed) for seed in range(3))
    weights = random(2, 1, 6, 6, seed=3).clamp(0, 1.5)
    masked = none + 1.5 * (image - none) + 7.5 * weights * (text - image)
    ours = image_guidance(focused_prediction(text, image, weights), image, none, 7.5, 1.5)
    assert (ours - masked).abs().max() <= 1e-6 * masked.abs().max()


def test_full_weights_keep_the_text_and_empty_ones_the_picture_bit_for_bit() -> None:
    text, image = random(1, 4, 6, 6), random(1, 4, 6, 6, seed=1)
    full = torch.ones(1, 1, 6, 6)
    assert torch.equal(focused_prediction(text, image, full), text)
    assert torch.equal(focused_prediction(text, image, 0 * full), image)
    half = text.half()
    assert focused_prediction(half, image.half(), full / 3).dtype == torch.float16


def test_an_instruction_does_not_reach_into_the_mask_of_another() -> None:
    text, image = random(1, 4, 6, 6), random(1, 4, 6, 6, seed=1)
    masks = torch.zeros(2, 6, 6, dtype=torch.bool)
    masks[0, :3], masks[1, 4:] = True, True
    weights = [instruction_weights(masks, torch.tensor([1.5, own])) for own in (1.0, 3.0)]
    first, second = (focused_prediction(text, image, one[None, None]) for one in weights)
    assert torch.equal(first[..., :4, :], second[..., :4, :])
    assert not torch.equal(first[..., 4:, :], second[..., 4:, :])
