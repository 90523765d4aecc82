"""Boxes of a picture and the words that belong into them: as settings, and found in a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnctl.calls import RunStart
from attnctl.editing.boxes import as_box
from attnctl.editing.prompt_edits import as_tuples, words_of
from attnctl.errors import SettingError, WordNotFoundError
from attnctl.named_words import Words, find_tokens, is_word, spread
from attnctl.ops.bounded_attention import Box
from attnctl.tokens import PromptTokens

_FUNCTION_WORDS = """
a an the this that these those some any each every all both either neither no such
and or but nor yet so if than as of in on at by to for from with without into onto over
under above below between among near beside behind before after across through around
along against inside outside left right top bottom up down off out there not
i you he she it we they me him her us them my your his its our their mine yours hers ours
theirs who whom whose which what where when how why can could may might must shall should
will would one two three four five six seven eight nine ten
"""
FUNCTION_WORDS = tuple(_FUNCTION_WORDS.split())
"""English words that name no object: articles, prepositions, conjunctions, pronouns, numbers."""


@dataclass(frozen=True, slots=True)
class BoxedSubjects:
    """Boxes of one picture, and the token positions that go with them.

    Attributes:
        boxes: One for each subject.
        positions: All tokens of each subject.
        leads: Of each subject, the token whose map tells where it is.
        filtered: Tokens that no image token sees.
        eos: The token that closes the prompt.
    """

    boxes: tuple[Box, ...]
    positions: tuple[tuple[int, ...], ...]
    leads: tuple[int, ...]
    filtered: tuple[int, ...]
    eos: int

    def __len__(self) -> int:
        return len(self.boxes)


def read_boxes(technique: str, value: Any) -> tuple[Any, ...]:
    """Read boxes for all prompts, or a list of them for each prompt.

    Raises:
        SettingError: a box is not ``(x0, y0, x1, y1)`` with ``0 <= x0 < x1 <= 1``, likewise y.
    """
    given = as_tuples(value)
    if isinstance(given, tuple):
        one_list: tuple[Any, ...] = given  # pyright: ignore[reportUnknownVariableType]
        if all(as_box(box) for box in one_list):
            return tuple(as_box(box) for box in one_list)
        if all(isinstance(one, tuple) and all(map(as_box, one)) for one in one_list):  # pyright: ignore[reportUnknownArgumentType]
            return tuple(tuple(as_box(box) for box in one) for one in one_list)
    raise SettingError(
        f"{technique}: boxes={value!r} must be one (x0, y0, x1, y1) for each subject, in parts of "
        "the picture from its upper left corner, with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, "
        "such as [[0.1, 0.3, 0.4, 0.8], [0.6, 0.3, 0.9, 0.8]]; for several prompts a list for each"
    )


def read_subjects(technique: str, value: Any, boxes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Read what belongs into each box: a word, a token position, or several of these.

    Args:
        technique: Name for messages.
        value: One for each box; if there are boxes for each prompt, a list for each prompt.
        boxes: From `read_boxes`.

    Raises:
        SettingError: it is something else, or there are more or fewer than boxes.
    """
    given = as_tuples((value,) if isinstance(value, str | int) else value)
    nested = _are_nested(boxes)
    if isinstance(given, tuple):
        lists: tuple[Any, ...] = given if nested else (given,)  # pyright: ignore[reportUnknownVariableType]
        if all(isinstance(one, tuple) and all(map(_is_subject, one)) for one in lists):  # pyright: ignore[reportUnknownArgumentType]
            _check_counts(technique, lists, boxes if nested else (boxes,))
            return given  # pyright: ignore[reportUnknownVariableType]
    raise SettingError(
        f"{technique}: subjects={value!r} must be for each box a word of the prompt, a token "
        "position from 1 (BOS is 0), or several of these, such as ['cat', ['small', 'dog']]"
        + ("; boxes= has a list for each prompt, so give such a list for each" if nested else "")
    )


def read_words(technique: str, name: str, value: Any) -> tuple[str, ...]:
    """Read words, or a single one.

    Raises:
        SettingError: one of them is no text, or empty.
    """
    given = as_tuples((value,) if isinstance(value, str) else value)
    if isinstance(given, tuple):
        words: tuple[Any, ...] = given  # pyright: ignore[reportUnknownVariableType]
        if all(isinstance(word, str) and word.strip() for word in words):
            return words
    raise SettingError(
        f"{technique}: {name}={value!r} must be words, such as ['a', 'with']; [] stands for none"
    )


def lists_of(boxes: tuple[Any, ...], subjects: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Boxes and subjects, for all prompts or for each."""
    if _are_nested(boxes):
        return list(zip(boxes, subjects, strict=True))
    return [(boxes, subjects)]


def boxed_items(
    technique: str,
    lists: Sequence[tuple[Any, Any]],
    filter_words: Sequence[str],
    run: RunStart,
) -> list[BoxedSubjects]:
    """Find the subjects of each picture of a run; pictures of one prompt share them.

    Args:
        technique: Name for messages.
        lists: From `lists_of`.
        filter_words: Words that no image token sees.
        run: The run that begins.

    Raises:
        SettingError: the pictures are no whole number of lists.
        WordNotFoundError: a word is not in its prompt, or the prompts are not known.
    """
    of_items = spread(technique, "boxes", lists, run.items)
    if run.prompts is None:
        raise WordNotFoundError(
            f"{technique} must know where the prompt ends, but the pipeline was given "
            "prompt_embeds; call it with prompt= instead"
        )
    stops = [x.text.stop for x in run.layouts.values() if x is not None and x.text is not None]
    length = max((int(stop) for stop in stops), default=len(run.prompts[0][0].ids))
    return [
        locate_boxed(technique, *one, filter_words, prompts[0], length)
        for one, prompts in zip(of_items, run.prompts, strict=True)
    ]


def locate_boxed(
    technique: str,
    boxes: tuple[Box, ...],
    subjects: Sequence[Any],
    filter_words: Sequence[str],
    prompt: PromptTokens,
    tokens: int,
) -> BoxedSubjects:
    """Find the tokens of one prompt's subjects.

    Args:
        technique: Name for messages.
        boxes: One for each subject.
        subjects: See `read_subjects`. A word counts at its first occurrence, with all its tokens;
            the last token of the last word leads.
        filter_words: Words that no image token sees; those that the prompt lacks are left out.
        prompt: The prompt as the encoder sees it.
        tokens: Length of the text axis.

    Raises:
        WordNotFoundError: a word is not in the prompt.
        SettingError: a position is not on the text axis.
    """
    found = [_positions(technique, subject, prompt, tokens) for subject in subjects]
    hidden = {word.lower() for word in filter_words}
    filtered = [p for w in words_of(prompt) if w.text.lower() in hidden for p in w.positions]
    last = prompt.word_positions[-1] if prompt.word_positions else prompt.offset
    return BoxedSubjects(
        boxes=boxes,
        positions=tuple(tuple(dict.fromkeys(positions)) for positions in found),
        leads=tuple(positions[-1] for positions in found),
        filtered=tuple(filtered) if boxes else (),
        eos=last + 1,
    )


def _positions(technique: str, subject: Any, prompt: PromptTokens, tokens: int) -> list[int]:
    words: Words = subject if isinstance(subject, tuple) else (subject,)
    found = find_tokens(technique, "subjects", words, prompt, tokens)
    return [p for positions in found for p in positions]


def _check_counts(technique: str, subjects: Sequence[Any], boxes: Sequence[Any]) -> None:
    if len(subjects) != len(boxes):
        raise SettingError(
            f"{technique}: subjects has {len(subjects)} lists, but boxes has {len(boxes)}; give "
            "one list of each for each prompt"
        )
    for words, of_prompt in zip(subjects, boxes, strict=True):
        if len(words) != len(of_prompt):
            raise SettingError(
                f"{technique}: {len(words)} subjects for {len(of_prompt)} boxes; give one subject "
                "for each box, several words of one subject as a list of their own"
            )


def _are_nested(boxes: tuple[Any, ...]) -> bool:
    return bool(boxes) and as_box(boxes[0]) is None


def _is_subject(value: Any) -> bool:
    if isinstance(value, tuple):
        words: tuple[Any, ...] = value  # pyright: ignore[reportUnknownVariableType]
        return bool(words) and all(is_word(word, first=1) for word in words)
    return is_word(value, first=1)
