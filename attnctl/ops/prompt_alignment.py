"""Which token of a source prompt stands for which token of a target prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Span = tuple[int, ...]


def replacement_matrix(
    source: Sequence[Span], target: Sequence[Span], changed: Sequence[int], length: int
) -> Tensor:
    """Mapping of source columns to target columns for prompts that swap words.

    Args:
        source: Token positions of each word of the source, in order.
        target: The same of the target, word for word.
        changed: Places of the words that differ.
        length: Tokens ``T`` of the text axis.

    Returns:
        ``(T, T)`` float32, rows source and columns target. A swapped word of as many tokens is
        mapped one to one, else every target token gets an equal part of every source token. Behind
        the last swapped word the columns are the target's own positions, padding is not shifted.

    Source: Hertz et al., arXiv 2208.01626 (word swap); boundary rules of the authors' code.
    """
    matrix = torch.zeros(length, length)
    at_source = at_target = 0
    for word in changed:
        old, new = source[word], target[word]
        while at_source < old[0]:
            matrix[at_source, at_target] = 1
            at_source, at_target = at_source + 1, at_target + 1
        if len(old) == len(new):
            matrix[list(old), list(new)] = 1
        else:
            for position in old:
                matrix[position, list(new)] = 1 / len(new)
        at_source, at_target = at_source + len(old), at_target + len(new)
    # The walk ends when either prompt does: a source that shifted behind the target loses columns.
    rest = max(at_source, at_target) - at_target
    own = torch.arange(at_target, length - rest)
    matrix[own, own] = 1
    return matrix


@dataclass(frozen=True, slots=True)
class Refinement:
    """For each target token its source token.

    Attributes:
        index: ``(T,)`` long; 0 where there is none.
        is_aligned: ``(T,)`` float32, 1 where there is one.
    """

    index: Tensor
    is_aligned: Tensor


def refinement(source: Sequence[int], target: Sequence[int], length: int) -> Refinement:
    """Align two prompts by their token ids; new tokens have no partner.

    Args:
        source: Token ids of the source from BOS to EOS.
        target: The same of the target.
        length: Tokens ``T`` of the text axis; behind the target every token is its own partner.

    Source: Needleman-Wunsch with gap 0, match 1, mismatch -1; of equal scores a gap in the source
        wins, then a gap in the target, as in the code of Hertz et al., arXiv 2208.01626.
    """
    rows, columns = len(source), len(target)
    score = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            match = 1 if source[i - 1] == target[j - 1] else -1
            score[i][j] = max(score[i][j - 1], score[i - 1][j], score[i - 1][j - 1] + match)
    index, aligned = torch.arange(length), torch.ones(length)
    i, j = rows, columns
    while j > 0:
        if i == 0 or score[i][j] == score[i][j - 1]:
            j -= 1
            index[j], aligned[j] = 0, 0
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            index[j] = i
    return Refinement(index, aligned)


def word_windows(
    bounds: Mapping[tuple[int, ...] | None, tuple[float, float]], steps: int, length: int
) -> Tensor:
    """When the source's columns are used: 1 inside a token's window, 0 outside.

    Args:
        bounds: First and last fraction of the run by token positions; ``None`` means all others,
            and comes first.
        steps: Steps ``N`` of the run.
        length: Tokens ``T``.

    Returns:
        ``(N + 1, T)`` float32. Bounds are rounded down to rows of ``N + 1``, as the reference does.

    Source: Hertz et al., arXiv 2208.01626, code: rows ``int(bound * (N + 1))``.
    """
    table = torch.zeros(steps + 1, length)
    for tokens, (first, last) in bounds.items():
        columns = list(range(length)) if tokens is None else list(tokens)
        start, stop = int(first * (steps + 1)), int(last * (steps + 1))
        table[:, columns] = 0
        table[start:stop, columns] = 1
    return table
