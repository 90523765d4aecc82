"""Injected maps against plain loops in float64, and what must hold of them."""

from __future__ import annotations

import torch
from torch import Tensor

from attnctl.ops.map_injection import MapEdit, edited_map, inject_map
from attnctl.ops.prompt_alignment import Refinement, refinement, replacement_matrix

TOKENS = 6


def maps(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    drawn = (torch.randn(2, 3, 5, TOKENS, generator=source) for _ in range(2))
    first, second = (one.to(dtype).softmax(-1) for one in drawn)
    return first, second


def in_loops(
    source: Tensor, target: Tensor, edit: MapEdit, window: Tensor, strength: float
) -> Tensor:
    out = torch.zeros_like(target, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in target.shape)):
        b, h, q, j = place.tolist()
        a0, ak = source[b, h, q].double(), float(target[b, h, q, j])
        if edit.mapping is None:
            taken = float(a0[j])
        elif isinstance(edit.mapping, Refinement):
            aligned = bool(edit.mapping.is_aligned[j])
            taken = float(a0[int(edit.mapping.index[j])]) if aligned else ak
        else:
            taken = sum(float(a0[i]) * float(edit.mapping[i, j]) for i in range(TOKENS))
        share = strength * float(window[j])
        out[b, h, q, j] = share * taken * float(edit.weights[j]) + (1 - share) * ak
    return out


def test_injection_equals_loops_in_float64() -> None:
    source, target = maps()
    weights = torch.tensor([1.0, 1.0, 2.5, 0.0, -1.0, 1.0])
    window = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    swap = replacement_matrix([(1,), (2,)], [(1,), (2, 3)], [1], TOKENS)
    for mapping in (None, swap, refinement([9, 1, 8], [9, 2, 1, 8], TOKENS)):
        edit = MapEdit(mapping, weights)
        for strength in (1.0, 0.3):
            ours = inject_map(source, target, edit, window, strength=strength)
            truth = in_loops(source, target, edit, window, strength)
            own_error = (source.double() @ torch.eye(TOKENS).double() - source).abs().max()
            assert (ours - truth).abs().max() <= 4e-7 + own_error


def test_outside_the_window_the_target_keeps_its_map_bit_for_bit() -> None:
    source, target = maps()
    edit = MapEdit(None, torch.full((TOKENS,), 3.0))
    assert torch.equal(inject_map(source, target, edit, torch.zeros(TOKENS)), target)
    assert torch.equal(inject_map(source, target, edit, torch.ones(TOKENS), strength=0.0), target)


def test_equal_weights_of_one_give_the_source_and_zero_removes_a_word() -> None:
    source, target = maps()
    ones = torch.ones(TOKENS)
    assert torch.equal(inject_map(source, target, MapEdit(None, ones), ones), source)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    assert not edited_map(source, target, MapEdit(None, weights))[..., 2].any()


def test_a_weight_scales_its_column_linearly() -> None:
    source, target = maps(torch.float64)
    twice, thrice = (
        edited_map(source, target, MapEdit(None, torch.full((TOKENS,), c, dtype=torch.float64)))
        for c in (2.0, 3.0)
    )
    assert torch.allclose(twice / 2, thrice / 3, atol=1e-15)


def test_rows_keep_their_sum_when_a_word_is_swapped_for_one_of_two_tokens() -> None:
    source, target = maps(torch.float64)
    source[..., 5] = 0  # the padding that the longer word pushes out
    source = source / source.sum(-1, keepdim=True)
    matrix = replacement_matrix([(1,), (2,)], [(1,), (2, 3)], [1], TOKENS)
    taken = edited_map(source, target, MapEdit(matrix, torch.ones(TOKENS)))
    # Columns 3 and 4 of the source are padding: 3 is dropped, 4 and 5 stay where they are.
    expected = source.sum(-1) - source[..., 3]
    assert torch.allclose(taken.sum(-1), expected)


def test_renormalised_rows_sum_to_one() -> None:
    source, target = maps()
    edit, ones = MapEdit(None, torch.full((TOKENS,), 3.0)), torch.ones(TOKENS)
    sums = inject_map(source, target, edit, ones, renormalise=True).sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums))
    assert not torch.allclose(inject_map(source, target, edit, ones).sum(-1), sums)


def test_only_an_edit_without_effect_is_plain() -> None:
    ones = torch.ones(TOKENS)
    assert MapEdit(None, ones).is_plain
    assert MapEdit(torch.eye(TOKENS), ones).is_plain
    assert MapEdit(refinement([9, 1], [9, 1], TOKENS), ones).is_plain
    assert not MapEdit(None, 2 * ones).is_plain
    assert not MapEdit(refinement([9, 1], [9, 2, 1], TOKENS), ones).is_plain
    assert not MapEdit(torch.eye(TOKENS).roll(1, 0), ones).is_plain
