"""Words of a prompt: what must appear, named by words or by token positions."""

from collections.abc import Sequence
from typing import Any

from attnctl.errors import SettingError
from attnctl.named_words import Words, find_tokens, is_word
from attnctl.tokens import PromptTokens


def check_subjects(technique: str, value: Any, name: str = "subjects") -> tuple[Any, ...]:
    """Read words or token positions, in one list or in a list for each prompt.

    Args:
        technique: Name for messages.
        value: What was given.
        name: Of the setting.

    Raises:
        SettingError: it is neither.
    """
    if isinstance(value, str | int) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, Sequence):
        if all(is_word(s) for s in value):
            return tuple(value)
        if all(isinstance(s, Sequence) and not isinstance(s, str) for s in value):
            lists = [tuple(one) for one in value]
            if all(is_word(s) for one in lists for s in one):
                return tuple(lists)
    raise SettingError(
        f"{technique}: {name}={value!r} must be words or token positions, such "
        "as ['cat', 'frog'] or [2, 5]; for several prompts a list for each"
    )


def lists_of(subjects: Any) -> list[Words]:
    """Lists of subjects, one for all prompts or one for each."""
    if subjects and isinstance(subjects[0], tuple):
        return list(subjects)
    return [subjects]


def locate(
    technique: str, subjects: Words, prompt: tuple[PromptTokens, ...] | None
) -> tuple[list[int], PromptTokens | None]:
    """Token positions of one item's subjects, and the prompt as the encoder sees it.

    A word of several tokens counts by its last one, at its first occurrence.

    Raises:
        WordNotFoundError: a word is not in the prompt, or the prompt is not known.
    """
    tokens = prompt[0] if prompt else None
    found = find_tokens(technique, "subjects", subjects, tokens)
    return [positions[-1] for positions in found], tokens
