"""Subjects of a prompt: what must appear, named by words or by token positions."""

from collections.abc import Sequence
from typing import Any

from attnctl.errors import SettingError, WordNotFoundError
from attnctl.tokens import PromptTokens

Subjects = tuple[str | int, ...]


def check_subjects(technique: str, value: Any) -> tuple[Any, ...]:
    """Read words or token positions, in one list or in a list for each prompt.

    Raises:
        SettingError: it is neither.
    """
    if isinstance(value, str | int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, Sequence):
        if all(_is_subject(s) for s in value):
            return tuple(value)
        if all(isinstance(s, Sequence) and not isinstance(s, str) for s in value):
            lists = [tuple(one) for one in value]
            if all(_is_subject(s) for one in lists for s in one):
                return tuple(lists)
    raise SettingError(
        f"{technique}: subjects={value!r} must be words or token positions from 1, such "
        "as ['cat', 'frog'] or [2, 5]; for several prompts a list for each"
    )


def lists_of(subjects: Any) -> list[Subjects]:
    """Lists of subjects, one for all prompts or one for each."""
    if subjects and isinstance(subjects[0], tuple):
        return list(subjects)
    return [subjects]


def spread(technique: str, subjects: Any, items: int) -> list[Subjects]:
    """The list of subjects of each item; items of one prompt share its list.

    Raises:
        SettingError: the items are no whole number of lists.
    """
    lists = lists_of(subjects)
    if items % len(lists):
        raise SettingError(
            f"{technique}: subjects has {len(lists)} lists for {items} pictures; give one "
            "list for all prompts, or one for each prompt"
        )
    return [one for one in lists for _ in range(items // len(lists))]


def locate(
    technique: str, subjects: Subjects, prompt: tuple[PromptTokens, ...] | None
) -> tuple[list[int], PromptTokens | None]:
    """Token positions of one item's subjects, and the prompt as the encoder sees it.

    A word of several tokens counts by its last one, at its first occurrence.

    Raises:
        WordNotFoundError: a word is not in the prompt, or the prompt is not known.
    """
    words = [s for s in subjects if isinstance(s, str)]
    if prompt is None:
        if words:
            raise WordNotFoundError(
                f"{technique}: the pipeline was given prompt_embeds, so {words[0]!r} cannot "
                "be found; give token positions (BOS is 0) as subjects instead"
            )
        return [int(s) for s in subjects], None
    tokens = prompt[0]
    positions = [
        tokens.find(s)[0].positions[-1] if isinstance(s, str) else int(s) for s in subjects
    ]
    return positions, tokens


def _is_subject(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
