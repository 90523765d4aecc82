"""The parts of attention modulation against plain loops, and their invariants."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attnctl.kernels import explicit_probabilities
from attnctl.ops.attention_modulation import (
    foreign_words,
    object_scores,
    phase_weights,
    temper_queries,
    word_bias,
)
from attnctl.ops.token_bias import bias_of, memberships

CENTRES = {0.15: (1.3, 1.0), 0.5: (1.1, 1.3), 0.85: (1.0, 1.1)}
GROUPS = [[1, 2], [4, 5, 6]]  # of 8 words; the noun is the last
NOUNS = [[2], [6]]
KEYS = 8


def made(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tempered(temperature: float) -> Tensor:
    query, key = made(2, 3, 5, 4), made(2, 3, 7, 4, seed=1)
    return explicit_probabilities(temper_queries(query, temperature), key, None, None)


def test_divided_queries_are_divided_logits() -> None:
    query, key = made(2, 3, 5, 4), made(2, 3, 7, 4, seed=1)
    expected = (query @ key.mT / math.sqrt(4) / 0.8).softmax(-1)
    assert torch.allclose(tempered(0.8), expected, atol=1e-6)
    assert torch.equal(temper_queries(query, 1.0), query)


def test_no_temperature_is_one_hot_and_an_endless_one_is_uniform() -> None:
    cold, warm, hot = tempered(1e-4), tempered(1.0), tempered(1e6)
    assert torch.equal(cold.argmax(-1), warm.argmax(-1))
    assert torch.allclose(cold.amax(-1), torch.ones(2, 3, 5), atol=1e-6)
    assert torch.allclose(hot, torch.full_like(hot, 1 / 7), atol=1e-5)


def test_the_entropy_of_each_row_grows_with_the_temperature() -> None:
    entropies = [torch.special.entr(tempered(t)).sum(-1) for t in (0.05, 0.3, 0.8, 1.0, 1.5, 10.0)]
    for colder, warmer in pairwise(entropies):
        assert (warmer >= colder - 1e-6).all()
        assert (warmer > colder + 1e-4).any()


def test_weights_change_linearly_between_centres_and_stay_outside() -> None:
    assert phase_weights(CENTRES, 0.0) == phase_weights(CENTRES, 0.15) == (1.3, 1.0)
    assert phase_weights(CENTRES, 0.5) == (1.1, 1.3)
    assert phase_weights(CENTRES, 0.85) == phase_weights(CENTRES, 1.0) == (1.0, 1.1)
    assert phase_weights(CENTRES, 0.325) == pytest.approx((1.2, 1.15))
    assert phase_weights({0.5: (2.0, 3.0)}, 0.1) == phase_weights({0.5: (2.0, 3.0)}, 0.9)
    steps = [phase_weights(CENTRES, i / 1000) for i in range(1001)]
    jumps = [abs(a - b) for one, two in pairwise(steps)
             for a, b in zip(one, two, strict=True)]  # fmt: skip
    assert max(jumps) < 1e-3


def test_a_bias_multiplies_the_odds_of_a_word_by_its_weight() -> None:
    nouns, attributes = memberships([[2, 6], [1, 4, 5]], KEYS)
    logits = made(4, KEYS)
    before = logits.softmax(-1).double()
    after = (logits + word_bias(nouns, attributes, (1.3, 0.7))).softmax(-1).double()
    for word, weight in ((2, 1.3), (6, 1.3), (1, 0.7), (4, 0.7), (5, 0.7), (3, 1.0), (7, 1.0)):
        odds = (after[:, word] / after[:, 0]) / (before[:, word] / before[:, 0])
        assert torch.allclose(odds, torch.full_like(odds, weight), atol=1e-5)
    assert torch.allclose(after.sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert not word_bias(nouns, attributes, (1.0, 1.0)).any()


def scores_by_loops(masses: Tensor, height: int, width: int) -> Tensor:
    """Mean over heads and a 3 x 3 Gaussian, reflected at the border, in float64."""
    weights = [math.exp(-0.5 * (d / 0.5) ** 2) for d in (-1, 0, 1)]
    weights = [w / sum(weights) for w in weights]
    mean = masses.double().mean(1).unflatten(1, (-1, height, width))
    out = torch.zeros_like(mean)
    for y in range(height):
        for x in range(width):
            for i, down in enumerate(weights):
                for j, across in enumerate(weights):
                    row, column = mirrored(y + i - 1, height), mirrored(x + j - 1, width)
                    out[:, :, y, x] += down * across * mean[:, :, row, column]
    return out.flatten(1, 3)


def mirrored(place: int, side: int) -> int:
    return side - 2 if place == side else abs(place)


@pytest.mark.parametrize(("height", "width", "frames"), [(4, 4, 1), (3, 5, 2)])
def test_scores_equal_loops(height: int, width: int, frames: int) -> None:
    masses = made(2, 3, frames * height * width, 2).sigmoid()
    ours = object_scores(masses, height, width)
    assert ours.shape == (2, frames * height * width, 2)
    assert torch.allclose(ours.double(), scores_by_loops(masses, height, width), atol=1e-6)


def foreign_by_loops(scores: Tensor) -> Tensor:
    hidden = torch.zeros(*scores.shape[:2], KEYS, dtype=torch.bool)
    for item in range(len(scores)):
        best = [max(pixel) for pixel in scores[item].tolist()]
        for pixel, values in enumerate(scores[item].tolist()):
            if best[pixel] < sum(best) / len(best):
                continue
            for place, words in enumerate(GROUPS):
                if place != values.index(best[pixel]):
                    hidden[item, pixel, words] = True
    return hidden


def test_a_pixel_sees_its_likeliest_object_and_the_background_sees_all() -> None:
    scores = made(2, 20, 2).sigmoid()
    foreign = foreign_words(scores, memberships(GROUPS, KEYS))
    assert torch.equal(foreign, foreign_by_loops(scores))
    assert foreign.any(-1).any()
    assert not foreign.any(-1).all()
    assert not foreign[..., [0, 3, 7]].any()
    assert not (foreign[..., 1] & foreign[..., 4]).any()


def test_masked_rows_sum_to_one_and_keep_the_ratios_of_what_is_seen() -> None:
    logits, scores = made(2, 1, 20, KEYS), made(2, 20, 2, seed=3).sigmoid()
    foreign = foreign_words(scores, memberships(GROUPS, KEYS))[:, None]
    before = logits.softmax(-1)
    after = (logits + bias_of(foreign, 1.0, torch.float32)).softmax(-1)
    assert torch.equal(after[foreign], torch.zeros(int(foreign.sum())))
    assert torch.allclose(after.sum(-1), torch.ones(2, 1, 20), atol=1e-6)
    seen = before.masked_fill(foreign, 0.0)
    assert torch.allclose(after, seen / seen.sum(-1, keepdim=True), atol=1e-6)


def test_one_object_masks_nothing() -> None:
    assert not foreign_words(made(2, 20, 1).sigmoid(), memberships(GROUPS[:1], KEYS)).any()


def test_items_are_independent() -> None:
    scores, members = made(2, 20, 2).sigmoid(), memberships(GROUPS, KEYS)
    both = foreign_words(scores, members)
    assert torch.equal(both[1:], foreign_words(scores[1:], members))


def test_the_order_of_objects_does_not_matter() -> None:
    scores, members = made(2, 20, 2).sigmoid(), memberships(GROUPS, KEYS)
    swapped = foreign_words(scores.flip(-1), members.flip(0))
    assert torch.equal(foreign_words(scores, members), swapped)


def test_a_weaker_mask_takes_a_share_of_the_odds() -> None:
    foreign = torch.tensor([True, False])
    assert bias_of(foreign, 0.75, torch.float32).exp().tolist() == pytest.approx([0.25, 1.0])
    assert not bias_of(foreign, 0.0, torch.float32).any()
    assert bias_of(foreign, 2.0, torch.float16)[0].item() == torch.finfo(torch.float16).min / 2


def test_memberships_are_read_from_positions() -> None:
    assert memberships(NOUNS, KEYS).nonzero().tolist() == [[0, 2], [1, 6]]
    assert memberships([[]], KEYS).sum() == 0
