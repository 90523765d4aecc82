"""IR-Diffusion's numbers against loops and nearest resizing, and the invariants of its masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.ir_diffusion import (
    blend_portraits,
    dropped,
    extended_attention,
    isolated_pairs,
    layer_mask,
    moved_tokens,
    portrait_logits,
    without_overlaps,
)
from attnctl.ops.otsu import otsu_threshold
from tests.techniques.injection_reference import attend, softmax_map

SIZE = (8, 10)
LOW = torch.finfo(torch.float32).min / 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask)


def rectangle(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def ragged(seed: int, top: int, left: int, height: int, width: int) -> Tensor:
    """A mask with holes whose bounding box is the rectangle."""
    mask = rectangle(top, left, height, width) & (drawn(*SIZE, seed=seed) > -0.5)
    mask[top, left] = mask[top + height - 1, left + width - 1] = True
    return mask


def pasted(features: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(C, H, W)`` moved as the paper has it: masked, cropped, resized, pasted."""
    corners = [
        (cells[:, 0].min(), cells[:, 0].max() + 1, cells[:, 1].min(), cells[:, 1].max() + 1)
        for cells in (source.nonzero(), target.nonzero())
    ]
    (a, b, c, d), (e, f, g, h) = [[int(x) for x in one] for one in corners]
    canvas = torch.zeros(len(features) + 1, *source.shape)
    crop = torch.cat([features * source, source[None].float()])[:, a:b, c:d]
    canvas[:, e:f, g:h] = F.interpolate(crop[None], size=(f - e, h - g), mode="nearest")[0]
    return canvas[:-1], canvas[-1] > 0


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_parts_the_classes_best(seed: int) -> None:
    values = drawn(40, seed=seed).round(decimals=1).tolist()

    def between(threshold: float) -> float:
        low = [v for v in values if v <= threshold]
        high = [v for v in values if v > threshold]
        gap = sum(low) / len(low) - sum(high) / len(high)
        return len(low) * len(high) * gap**2

    best = max(between(v) for v in values if v < max(values))
    found = otsu_threshold(torch.tensor(values, dtype=torch.float64))
    assert between(found) == pytest.approx(best)
    assert found in values


def test_a_mask_stays_as_it_is_on_its_own_grid_and_even_ones_on_every_grid() -> None:
    mask = ragged(0, 1, 2, 5, 6)
    assert torch.equal(layer_mask(mask, SIZE), mask)
    assert layer_mask(torch.ones(6, 6, dtype=torch.bool), (3, 4)).all()
    assert not layer_mask(torch.zeros(6, 6, dtype=torch.bool), (3, 4)).any()


def test_a_mask_keeps_its_place_on_coarser_and_finer_grids() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 8:] = True
    for side in (8, 4, 32):
        expected = torch.zeros(side, side, dtype=torch.bool)
        expected[side // 4 : 3 * side // 4, side // 2 :] = True
        found = layer_mask(mask, (side, side))
        assert (found ^ expected).sum() <= (0 if side < 16 else 2 * side)


def test_a_cell_of_two_words_belongs_to_the_stronger_one() -> None:
    maps = torch.tensor([[[0.0, 5.0, 10.0]], [[1.0, 0.8, 0.0]]])  # 0, .5, 1 and 1, .8, 0
    masks = torch.tensor([[[False, True, True]], [[True, True, False]]])
    apart = without_overlaps(masks, maps)
    assert apart.tolist() == [[[False, False, True]], [[True, True, False]]]


def test_subjects_do_not_see_each_other_and_all_else_is_free() -> None:
    masks = torch.stack(
        [rectangle(0, 0, 3, 4), rectangle(4, 5, 4, 5), rectangle(0, 6, 2, 2)]
    ).flatten(1)
    forbidden = isolated_pairs(masks)
    sizes = masks.sum(1).tolist()
    pairs = sum(a * b for i, a in enumerate(sizes) for j, b in enumerate(sizes) if i != j)
    assert int(forbidden.sum()) == pairs
    for i in range(masks.shape[1]):
        for j in range(masks.shape[1]):
            meet = any(
                bool(masks[a, i] and masks[b, j]) for a in range(3) for b in range(3) if a != b
            )
            assert bool(forbidden[i, j]) == meet


def test_one_subject_is_isolated_from_nothing() -> None:
    assert not isolated_pairs(rectangle(0, 0, 8, 5).flatten()[None]).any()


def test_where_two_subjects_overlap_neither_is_seen() -> None:
    left, right = rectangle(0, 0, 8, 6).flatten(), rectangle(0, 5, 8, 5).flatten()
    forbidden = isolated_pairs(torch.stack([left, right]))
    for cell in (left & right).nonzero().flatten().tolist():
        assert (~forbidden[cell]).nonzero().flatten().tolist() == [cell]  # itself alone


def test_equal_boxes_move_nothing() -> None:
    source = ragged(1, 2, 3, 4, 5)
    read, place = moved_tokens(source, rectangle(2, 3, 4, 5))
    assert torch.equal(read, place)
    assert torch.equal(read, source.flatten().nonzero().flatten())
    features = drawn(3, *SIZE)
    canvas = torch.zeros(3, 80)
    canvas[:, place] = features.flatten(1)[:, read]
    assert torch.equal(canvas.unflatten(1, SIZE), features * source)


def test_twice_the_size_repeats_each_token_two_by_two() -> None:
    read, place = moved_tokens(rectangle(1, 1, 2, 3), rectangle(3, 2, 4, 6))
    canvas = torch.full((80,), -1)
    canvas[place] = read
    block = canvas.unflatten(0, SIZE)[3:7, 2:8]
    expected = torch.tensor([[11, 12, 13], [21, 22, 23]])
    assert torch.equal(block, expected.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_a_constant_patch_stays_constant() -> None:
    features, _ = pasted(torch.full((2, *SIZE), 7.0), rectangle(0, 0, 3, 7), rectangle(1, 2, 7, 5))
    read, place = moved_tokens(rectangle(0, 0, 3, 7), rectangle(1, 2, 7, 5))
    assert len(place) == 35
    assert (features.flatten(1)[:, place] == 7).all()
    assert rectangle(0, 0, 3, 7).flatten()[read].all()


@pytest.mark.parametrize("seed", range(6))
def test_moved_tokens_are_those_of_cropping_resizing_and_pasting(seed: int) -> None:
    sizes = torch.randint(2, 7, (4,), generator=torch.Generator().manual_seed(seed)).tolist()
    source = ragged(seed, 1, 2, sizes[0], sizes[1])
    target = ragged(seed + 50, 0, 3, sizes[2], sizes[3])
    features = drawn(3, *SIZE, seed=seed)
    expected, mask = pasted(features, source, target)
    read, place = moved_tokens(source, target)
    canvas = torch.zeros(3, 80)
    canvas[:, place] = features.flatten(1)[:, read]
    assert torch.equal(canvas.unflatten(1, SIZE), expected)
    assert torch.equal(place.sort().values, mask.flatten().nonzero().flatten())
    assert rectangle(0, 3, sizes[2], sizes[3]).flatten()[place].all()  # inside the box


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_mask_moves_nothing(empty: int) -> None:
    masks = [rectangle(0, 0, 2, 2), rectangle(0, 0, 2, 2)]
    masks[empty] = rectangle(0, 0, 0, 0)
    assert [len(one) for one in moved_tokens(*masks)] == [0, 0]


def test_dropout_depends_on_its_key_alone() -> None:
    mask = torch.arange(4000) % 2 == 0
    state = torch.get_rng_state()
    first = dropped(mask, 0.5, 7, 3, 1)
    assert torch.equal(dropped(mask, 0.5, 7, 3, 1), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(dropped(mask, 0.5, 7, 4, 1), first)
    assert not (first & ~mask).any()
    assert 0.45 < float(first.sum()) / 2000 < 0.55
    assert 0.85 < float(dropped(mask, 0.1, 7).sum()) / 2000 < 0.95


def test_a_mask_that_dropout_would_empty_is_kept() -> None:
    one = torch.zeros(9, dtype=torch.bool)
    one[4] = True
    assert all(torch.equal(dropped(one, 0.9, key), one) for key in range(20))
    assert torch.equal(dropped(one, 0.0, 1), one)


def extended(
    bias: float = 0.0, dropout: float = 0.5
) -> tuple[Tensor, list[Tensor], Tensor, Tensor, list[Tensor]]:
    """Logits, tokens read, masks in the scene, forbidden pairs, and seeing queries."""
    sources = [ragged(3, 0, 0, 4, 3), ragged(4, 2, 4, 6, 3)]
    targets = torch.stack([rectangle(1, 0, 5, 4), rectangle(0, 6, 8, 4)])
    moved = [moved_tokens(s, t)[0] for s, t in zip(sources, targets, strict=True)]
    flat = targets.flatten(1)
    forbidden = isolated_pairs(flat)
    seeing = [dropped(mask, dropout, 0, at) for at, mask in enumerate(flat)]
    logits = portrait_logits(
        forbidden, torch.stack(seeing), [len(m) for m in moved], bias, torch.float32
    )
    return logits, moved, flat, forbidden, seeing


def states(count: int = 3, width: int = 4) -> list[list[Tensor]]:
    """Query, key and value of two portraits and the scene."""
    return [[drawn(1, 1, 80, width, seed=10 * i + j) for j in range(3)] for i in range(count)]


@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_extended_attention_equals_loops_over_what_may_be_seen(bias: float) -> None:
    logits, moved, _, forbidden, seeing = extended(bias)
    first, second, scene = states()
    portraits = [
        (p[1][:, :, m], p[2][:, :, m]) for p, m in zip((first, second), moved, strict=True)
    ]
    query, key, value = scene
    out = extended_attention(query, (key, value), portraits, logits, plain)[0, 0]
    for i in range(80):
        keys, values, added = [], [], []
        for portrait, tokens, who in zip((first, second), moved, seeing, strict=True):
            if who[i]:
                keys.append(portrait[1][0, 0, tokens])
                values.append(portrait[2][0, 0, tokens])
                added += [bias] * len(tokens)
        free = ~forbidden[i]
        keys.append(key[0, 0, free])
        values.append(value[0, 0, free])
        # A constant on a logit is one more dimension of query and key.
        widened = torch.cat(keys)
        shift = torch.tensor(added + [0.0] * int(free.sum()))[:, None]
        asks = torch.cat([0.5 * query[0, 0, i : i + 1], torch.ones(1, 1)], dim=1)
        probs = softmax_map(asks, torch.cat([widened, shift], dim=1), 1.0)
        truth = attend(probs, torch.cat(values))
        assert (out[i] - truth[0]).abs().max() < 2e-6


def test_rows_sum_to_one_over_portraits_and_scene() -> None:
    logits, moved, *_ = extended()
    first, second, (query, key, _) = states()
    ones = [
        (p[1][:, :, m], torch.ones(1, 1, len(m), 4))
        for p, m in zip((first, second), moved, strict=True)
    ]
    out = extended_attention(query, (key, torch.ones_like(key)), ones, logits, plain)
    assert torch.allclose(out, torch.ones_like(out), atol=1e-6)


def test_no_probability_goes_from_one_subject_to_another() -> None:
    logits, moved, masks, _, _ = extended()
    first, second, (query, key, _) = states()
    count = sum(len(m) for m in moved)
    keys = torch.cat([first[1][:, :, moved[0]], second[1][:, :, moved[1]], key], dim=2)
    probs = (query @ keys.mT * 0.5 + logits).softmax(-1)[0, 0]
    for a, b in ((0, 1), (1, 0)):
        assert (probs[masks[a]][:, count:][:, masks[b]] == 0).all()
    assert (probs[:, count:][~masks.any(0)] > 0).all()


def test_queries_that_see_no_portrait_give_the_isolated_result() -> None:
    logits, moved, _, forbidden, seeing = extended()
    first, second, (query, key, value) = states()
    portraits = [
        (p[1][:, :, m], p[2][:, :, m]) for p, m in zip((first, second), moved, strict=True)
    ]
    out = extended_attention(query, (key, value), portraits, logits, plain)
    isolated = plain(query, key, value, torch.zeros(80, 80).masked_fill(forbidden, LOW))
    blind = ~(seeing[0] | seeing[1])
    assert blind.any()
    assert torch.allclose(out[:, :, blind], isolated[:, :, blind], atol=1e-6)
    assert (out[:, :, ~blind] - isolated[:, :, ~blind]).abs().amax(-1).min() > 1e-4


def test_without_a_move_it_is_masked_extended_attention() -> None:
    """Whole portraits as keys, where the mask closes what does not show the subject."""
    source = ragged(3, 0, 0, 4, 3)
    target = rectangle(0, 0, 4, 3).flatten()
    read, _ = moved_tokens(source, target.unflatten(0, SIZE))
    (_, other_key, other_value), (query, key, value) = states(2)
    none = torch.zeros(80, 80, dtype=torch.bool)
    logits = portrait_logits(none, target[None], [len(read)], 0.0, torch.float32)
    portrait = (other_key[:, :, read], other_value[:, :, read])
    out = extended_attention(query, (key, value), [portrait], logits, plain)
    closed = ~(target[:, None] & source.flatten()[None])
    mask = torch.cat([closed, none], dim=1)
    whole = plain(
        query, torch.cat([other_key, key], 2), torch.cat([other_value, value], 2),
        torch.zeros(80, 160).masked_fill(mask, LOW),
    )  # fmt: skip
    assert torch.allclose(out, whole, atol=1e-6)


def test_texts_of_portraits_are_mixed_inside_the_masks_alone() -> None:
    out, told = drawn(2, 3, 6, 4), drawn(2, 2, 3, 6, 4, seed=1)
    masks = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
    mixed = blend_portraits(out, told, masks, 0.9)
    for cell in range(6):
        mine = [told[s][:, :, cell] for s in range(2) if masks[s, cell]]
        if not mine:
            assert torch.equal(mixed[:, :, cell], out[:, :, cell])
            continue
        truth = 0.1 * out[:, :, cell].double() + 0.9 * torch.stack(mine).double().mean(0)
        assert (mixed[:, :, cell] - truth).abs().max() < 1e-6
    assert torch.equal(blend_portraits(out, told, masks, 0.0), out)
