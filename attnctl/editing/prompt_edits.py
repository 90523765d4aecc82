"""From two prompts to the edit of an attention map: which word stands for which, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.errors import SettingError, WordNotFoundError
from attnctl.ops.map_injection import MapEdit
from attnctl.ops.prompt_alignment import refinement, replacement_matrix, word_windows
from attnctl.settings import check_number
from attnctl.tokens import PromptTokens

EDITS = ("replace", "refine", "reweight")
DEFAULT = "default_"
"""Key for all words that are not named, as in the reference."""

Bounds = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a prompt: its text and token positions."""

    text: str
    positions: tuple[int, ...]


def words_of(prompt: PromptTokens) -> list[Word]:
    """List the words of a prompt; punctuation stands apart, as the tokenizer has it."""
    words: list[Word] = []
    text, held = "", list[int]()
    for position in prompt.word_positions:
        piece = prompt.pieces[position - prompt.offset]
        text, held = text + piece, [*held, position]
        if piece.endswith(" ") or prompt.tokens[position - prompt.offset].endswith("</w>"):
            words.append(Word(text.strip(), tuple(held)))
            text, held = "", []
    return [*words, Word(text.strip(), tuple(held))] if held else words


def map_edit(
    technique: str,
    kind: str,
    source: PromptTokens,
    target: PromptTokens,
    weights: Mapping[str, float],
    length: int,
) -> MapEdit:
    """Turn a source and a target prompt into the edit of a cross-attention map.

    Args:
        technique: Name for messages.
        kind: One of `EDITS`.
        source: Prompt of the source.
        target: Prompt of the target.
        weights: Factors of words of the target.
        length: Tokens of the text axis.

    Raises:
        SettingError: a prompt is empty, or swapped words do not align.
        WordNotFoundError: a word with a factor is not in the target.
    """
    for name, prompt in (("source", source), ("target", target)):
        if not prompt.word_positions:
            raise SettingError(
                f"{technique}: the {name} prompt has no words, so there is nothing to align; "
                "describe the picture in it"
            )
    factors = torch.ones(length)
    for word, factor in weights.items():
        for span in target.find(word):
            factors[list(span.positions)] = float(factor)
    if kind == "replace":
        return MapEdit(_replacement(technique, source, target, length), factors)
    if kind == "refine":
        return MapEdit(refinement(_seen_ids(source), _seen_ids(target), length), factors)
    return MapEdit(None, factors)


def windows(bounds: Mapping[str, Bounds], target: PromptTokens, steps: int, length: int) -> Tensor:
    """Tell at which steps which columns are injected, ``(steps + 1, length)``.

    Raises:
        WordNotFoundError: a word is not in the target prompt.
    """
    by_tokens: dict[tuple[int, ...] | None, Bounds] = {None: bounds[DEFAULT]}
    for word, window in bounds.items():
        if word != DEFAULT:
            found = [p for span in target.find(word) for p in span.positions]
            by_tokens[tuple(found)] = window
    return word_windows(by_tokens, steps, length)


def positions_of(
    technique: str, name: str, words: Sequence[str], prompt: PromptTokens
) -> list[int]:
    """Token positions of words of a prompt.

    Raises:
        WordNotFoundError: one is not there.
    """
    try:
        return sorted({p for word in words for span in prompt.find(word) for p in span.positions})
    except WordNotFoundError as error:
        raise WordNotFoundError(f"{technique}: {name}: {error}") from None


def read_bounds(technique: str, name: str, value: Any) -> dict[str, Bounds]:
    """Read when words are injected: a fraction, a pair of them, or a mapping from words to these.

    Raises:
        SettingError: it is none of these.
    """
    given: dict[Any, Any] = dict(value) if isinstance(value, Mapping) else {DEFAULT: value}
    if not all(isinstance(word, str) and word.strip() for word in given):
        raise SettingError(f"{technique}: {name}={value!r} must map words to fractions of the run")
    first = {DEFAULT: given.pop(DEFAULT, (0.0, 1.0))}
    return {word: read_window(technique, name, one) for word, one in (first | given).items()}


def read_window(technique: str, name: str, value: Any) -> Bounds:
    """Read a window of the run: its end, or its start and end, as fractions.

    Raises:
        SettingError: it is neither.
    """
    pair: Any = (0.0, value) if isinstance(value, int | float) else value
    is_pair = isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2  # pyright: ignore[reportUnknownArgumentType]
    if not is_pair:
        raise SettingError(
            f"{technique}: {name}={value!r} must be a fraction of the run such as 0.8, or a start "
            "and an end such as (0.2, 0.8)"
        )
    for bound in pair:
        check_number(technique, name, bound, at_least=0, at_most=1)
    start, stop = float(pair[0]), float(pair[1])
    if start > stop:
        raise SettingError(f"{technique}: {name}={value!r} starts after it ends")
    return start, stop


def as_tuples(value: Any) -> Any:
    """Turn lists, as they come from a file, into tuples, also inside mappings."""
    if isinstance(value, list | tuple):
        return tuple(as_tuples(one) for one in value)
    if isinstance(value, Mapping):
        return {key: as_tuples(one) for key, one in value.items()}
    return value


def word_list(technique: str, name: str, value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Read words of the source and of the target: words for both, or one list for each prompt.

    Raises:
        SettingError: it is neither.
    """
    if isinstance(value, str):
        value = (value,)
    items: Any = list(value) if isinstance(value, Sequence) else [None]
    if len(items) == 2 and all(isinstance(i, list | tuple) for i in items):
        lists = tuple(tuple(i) for i in items)
    else:
        lists = (tuple(items), tuple(items))
    if all(isinstance(w, str) and w.strip() for one in lists for w in one):
        return lists[0], lists[1]
    raise SettingError(
        f"{technique}: {name}={value!r} must be words of both prompts, such as ['cat'], or a list "
        "for the source and one for the target, such as [['cat'], ['dog']]"
    )


def _replacement(technique: str, source: PromptTokens, target: PromptTokens, length: int) -> Tensor:
    old, new = words_of(source), words_of(target)
    if len(old) != len(new):
        raise SettingError(
            f"{technique}: edit='replace' swaps words one for one, but {_shown(old)} has "
            f"{len(old)} words and {_shown(new)} has {len(new)}; use edit='refine', which aligns "
            "prompts of different length, or give prompts of equal length"
        )
    changed = [
        place
        for place, (a, b) in enumerate(zip(old, new, strict=True))
        if _ids(source, a) != _ids(target, b)
    ]
    spans = ([w.positions for w in old], [w.positions for w in new])
    return replacement_matrix(*spans, changed, length)


def _ids(prompt: PromptTokens, word: Word) -> list[int]:
    return [prompt.ids[position - prompt.offset] for position in word.positions]


def _seen_ids(prompt: PromptTokens) -> list[int]:
    """Ids from BOS to EOS."""
    return list(prompt.ids[: prompt.word_positions[-1] - prompt.offset + 2])


def _shown(words: Sequence[Word]) -> str:
    return repr(" ".join(word.text for word in words))
