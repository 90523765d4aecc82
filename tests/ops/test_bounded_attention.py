"""Bounded Attention's masks and loss against loops, and their algebra."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.kernels import explicit_probabilities
from attnctl.ops.bounded_attention import (
    box_losses,
    box_masks,
    box_sums,
    forbidden_image_pairs,
    forbidden_text_pairs,
    step_size,
)
from attnctl.ops.token_bias import bias_of

LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 0.75)
OVER = (0.25, 0.25, 0.75, 0.75)  # overlaps both


def cells_by_loops(box: tuple[float, ...], height: int, width: int) -> set[int]:
    x0, y0, x1, y1 = box
    rows = range(round(y0 * height), round(y1 * height))
    return {y * width + x for y in rows for x in range(round(x0 * width), round(x1 * width))}


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (5, 7)])
def test_boxes_cover_the_rounded_cells_row_by_row(height: int, width: int) -> None:
    masks = box_masks([LEFT, RIGHT, OVER], height, width)
    for mask, box in zip(masks, (LEFT, RIGHT, OVER), strict=True):
        assert set(mask.nonzero().flatten().tolist()) == cells_by_loops(box, height, width)


def test_sides_are_rounded_to_the_even_cell_and_no_box_vanishes() -> None:
    halves = box_masks([(0.125, 0.0, 0.375, 1.0)], 1, 4)  # 0.5 and 1.5 cells
    assert halves.tolist() == [[True, True, False, False]]
    thin = box_masks([(0.4, 0.4, 0.41, 0.41), (0.99, 0.99, 1.0, 1.0)], 4, 4)
    assert thin.sum(dim=1).tolist() == [1, 1]
    assert thin[1, 15]


def test_two_disjoint_boxes_close_the_pairs_between_them_alone() -> None:
    masks = box_masks([LEFT, RIGHT], 8, 8)
    forbidden = forbidden_image_pairs(masks)
    sizes = masks.sum(dim=1)
    assert int((~forbidden).sum()) == 64**2 - 2 * int(sizes[0] * sizes[1])
    assert torch.equal(forbidden, forbidden.T)
    background = ~masks.any(dim=0)
    assert not forbidden[background].any()
    assert not forbidden[:, background].any()


def test_a_token_in_two_boxes_sees_the_subjects_of_both() -> None:
    masks = box_masks([LEFT, RIGHT, OVER], 8, 8)
    forbidden = forbidden_image_pairs(masks)
    for i in range(64):
        for j in range(64):
            mine, theirs = (set(masks[:, k].nonzero().flatten().tolist()) for k in (i, j))
            assert bool(forbidden[i, j]) == (bool(mine) and bool(theirs) and not mine & theirs)


def test_one_subject_everywhere_closes_nothing() -> None:
    masks = box_masks([(0.0, 0.0, 1.0, 1.0)], 4, 4)
    assert not forbidden_image_pairs(masks).any()
    assert not forbidden_text_pairs(masks, [[2]], 9, eos=5).any()


def text_pairs_by_loops(masks: Tensor, is_open: bool) -> list[list[bool]]:
    """Subjects [2, 3] and [3, 5], filtered words 1 and 5, end token 6, 8 tokens."""
    subjects, rows = [{2, 3}, {3, 5}], list[list[bool]]()
    for cell in range(masks.shape[1]):
        own = [s for s, mask in zip(subjects, masks, strict=True) if mask[cell]]
        is_background = not own
        if is_background and is_open:
            own = subjects
        row = [token in {1, 2, 3, 5} and not any(token in s for s in own) for token in range(8)]
        row[6] = is_background and not is_open
        rows.append(row)
    return rows


@pytest.mark.parametrize("is_open", [False, True])
def test_words_are_seen_by_their_own_subject_and_filtered_ones_by_none(is_open: bool) -> None:
    masks = box_masks([OVER, RIGHT], 8, 8)
    forbidden = forbidden_text_pairs(
        masks, [[2, 3], [3, 5]], 8, filtered=[1, 5], eos=6, is_background_open=is_open
    )
    assert forbidden.tolist() == text_pairs_by_loops(masks, is_open)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masked_rows_sum_to_one_and_forbidden_pairs_are_zero(dtype: torch.dtype) -> None:
    masks = box_masks([LEFT, RIGHT], 4, 4)
    forbidden = forbidden_image_pairs(masks)
    query, key = torch.randn(2, 1, 2, 16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    probs = explicit_probabilities(query, key, bias_of(forbidden, 1.0, dtype), None)
    assert torch.allclose(probs.sum(dim=-1), torch.ones(1, 2, 16))
    assert (probs[..., forbidden] == 0).all()
    assert (probs[..., ~forbidden] > 0).all()


def test_a_row_that_may_see_nothing_is_uniform_and_finite() -> None:
    query, key = torch.randn(2, 1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    bias = bias_of(torch.ones(3, 3, dtype=torch.bool), 1.0, torch.float32)
    assert torch.allclose(explicit_probabilities(query, key, bias, None), torch.full((3, 3), 1 / 3))


def test_less_strength_multiplies_the_odds_of_forbidden_pairs() -> None:
    forbidden = torch.tensor([[True, False]])
    assert bias_of(forbidden, 0.75, torch.float64).exp().tolist() == [[0.25, 1.0]]
    assert not bias_of(forbidden, 0.0, torch.float32).any()


def test_all_attention_inside_is_no_loss_and_as_much_outside_is_four_ninths() -> None:
    masks = box_masks([LEFT, RIGHT], 4, 4)
    inside = masks.T.float().expand(3, 16, 2)
    full = box_sums(inside, masks)
    assert full[0].tolist() == [3 * 8.0, 3 * 4.0]
    assert box_losses(*full).tolist() == [0.0, 0.0]

    equal = torch.tensor([5.0, 7.0])
    terms = box_losses(equal, equal)  # 1/3 of it counts as inside
    assert terms.tolist() == pytest.approx([4 / 9, 4 / 9])
    assert float(1.5 * terms.sum() + 0.5 * terms.sum()) == pytest.approx(1.7778, abs=1e-4)


def test_sums_equal_loops_and_leave_foreign_boxes_out() -> None:
    masks = box_masks([LEFT, OVER], 4, 4)
    masses = torch.rand(2, 16, 2, generator=torch.Generator().manual_seed(1))
    inside, outside = box_sums(masses, masks)
    for s in range(2):
        cells = range(16)
        expected = sum(float(masses[h, i, s]) for h in range(2) for i in cells if masks[s, i])
        assert float(inside[s]) == pytest.approx(expected, rel=1e-5)
        expected = sum(
            float(masses[h, i, s]) for h in range(2) for i in cells if not masks[:, i].any()
        )
        assert float(outside[s]) == pytest.approx(expected, rel=1e-5)


def test_no_attention_at_all_is_a_full_loss_and_finite() -> None:
    zero = torch.zeros(2, requires_grad=True)
    losses = box_losses(zero, zero * 1.0)
    assert losses.tolist() == [1.0, 1.0]


def test_the_loss_falls_when_attention_moves_into_the_box() -> None:
    inside = torch.tensor([1.0], requires_grad=True)
    outside = torch.tensor([1.0], requires_grad=True)
    box_losses(inside, outside).sum().backward()
    assert inside.grad is not None
    assert outside.grad is not None
    assert inside.grad < 0 < outside.grad


def test_step_sizes_are_linear_and_end_before_the_last() -> None:
    sizes = [step_size(i, 15, 18.0, 5.0) for i in range(15)]
    assert sizes[:2] == [18.0, pytest.approx(17.1333, abs=1e-4)]
    assert sizes[-1] == pytest.approx(5.8667, abs=1e-4)
