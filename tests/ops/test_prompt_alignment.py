"""Word alignment of two prompts: swapped words, added words, windows of steps."""

from __future__ import annotations

import pytest
import torch

from attnctl.ops.prompt_alignment import refinement, replacement_matrix, word_windows

A, CAT, BLACK, DOG, BOS, EOS = 1, 2, 3, 4, 100, 101


def test_an_added_word_shifts_the_words_behind_it_and_not_the_padding() -> None:
    found = refinement([BOS, A, CAT, EOS], [BOS, A, BLACK, CAT, EOS], 8)
    assert found.index.tolist() == [0, 1, 0, 2, 3, 5, 6, 7]
    assert found.is_aligned.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]


def test_a_dropped_word_leaves_the_others_their_partners() -> None:
    found = refinement([BOS, A, BLACK, CAT, EOS], [BOS, A, CAT, EOS], 6)
    assert found.index.tolist() == [0, 1, 3, 4, 4, 5]
    assert found.is_aligned.tolist() == [1] * 6


def test_a_swapped_word_is_new() -> None:
    found = refinement([BOS, A, CAT, EOS], [BOS, A, DOG, EOS], 5)
    assert found.is_aligned.tolist() == [1, 1, 0, 1, 1]
    assert found.index.tolist() == [0, 1, 0, 3, 4]


def test_equal_prompts_are_their_own_partners() -> None:
    found = refinement([BOS, A, CAT, EOS], [BOS, A, CAT, EOS], 9)
    assert torch.equal(found.index, torch.arange(9))
    assert bool((found.is_aligned == 1).all())
    matrix = replacement_matrix([(1,), (2,)], [(1,), (2,)], [], 9)
    assert torch.equal(matrix, torch.eye(9))


def test_the_refinement_is_a_best_alignment() -> None:
    source = torch.Generator().manual_seed(0)
    for _ in range(60):
        x, y = (torch.randint(0, 4, (6,), generator=source).tolist() for _ in range(2))
        found = refinement(x, y, 8)
        partners = [int(i) for i, a in zip(found.index[:6], found.is_aligned, strict=False) if a]
        assert partners == sorted(set(partners))
        for j in range(6):
            if found.is_aligned[j]:
                assert x[int(found.index[j])] == y[j]
        assert len(partners) == _longest_common(x, y)


def _longest_common(x: list[int], y: list[int]) -> int:
    if not x or not y:
        return 0
    if x[-1] == y[-1]:
        return 1 + _longest_common(x[:-1], y[:-1])
    return max(_longest_common(x[:-1], y), _longest_common(x, y[:-1]))


def test_a_word_of_as_many_tokens_is_mapped_one_to_one() -> None:
    matrix = replacement_matrix([(1,), (2, 3), (4,)], [(1,), (2, 3), (4,)], [1], 8)
    assert torch.equal(matrix, torch.eye(8))


def test_more_target_tokens_share_the_mass_of_the_source() -> None:
    matrix = replacement_matrix([(1,), (2,), (3,)], [(1,), (2, 3), (4,)], [1], 8)
    assert matrix[2].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert float(matrix[2].sum()) == 1
    # Words in front keep their place; behind the last swapped word each column is its own.
    assert matrix[1, 1] == 1
    assert [int(matrix[:, j].argmax()) for j in range(4, 8)] == [4, 5, 6, 7]


def test_one_target_token_gets_the_sum_of_two_source_tokens() -> None:
    matrix = replacement_matrix([(1,), (2, 3), (4,)], [(1,), (2,), (3,)], [1], 8)
    assert matrix[:, 2].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_words_between_two_swapped_ones_shift_with_them() -> None:
    source, target = [(1,), (2,), (3,)], [(1, 2), (3,), (4,)]
    matrix = replacement_matrix(source, target, [0, 2], 8)
    assert matrix[2].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert matrix[3].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


def test_columns_of_words_that_stay_are_one_hot() -> None:
    matrix = replacement_matrix([(1,), (2,), (3,)], [(1,), (2, 3), (4,)], [1], 77)
    for column in (0, 1, *range(4, 77)):
        assert sorted(matrix[:, column].tolist())[-2:] == [0, 1]


@pytest.mark.parametrize(("steps", "bound", "rows"), [(50, 0.8, 40), (50, 1.0, 51), (25, 0.4, 10)])
def test_windows_round_down_to_rows_of_one_more_than_the_steps(
    steps: int, bound: float, rows: int
) -> None:
    table = word_windows({None: (0.0, bound)}, steps, 5)
    assert table.shape == (steps + 1, 5)
    assert table.sum(0).tolist() == [rows] * 5
    assert bool((table[:rows] == 1).all())


def test_a_word_can_have_a_window_of_its_own() -> None:
    table = word_windows({None: (0.0, 1.0), (2, 3): (0.5, 0.75)}, 7, 5)
    assert table[:, 2].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]
    assert torch.equal(table[:, 2], table[:, 3])
    assert table[:, 1].tolist() == [1] * 8
