"""Objects of a prompt, each a noun with its attributes, and where their tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnctl.errors import SettingError, nearest
from attnctl.named_words import check_positions, find_tokens, is_word
from attnctl.ops.words import split_occurrence
from attnctl.tokens import PromptTokens

NOUN, ATTRIBUTES = "noun", "attributes"

_FORM = "such as 'red circle' or {'noun': 'circle', 'attributes': ['red']}"


@dataclass(frozen=True, slots=True)
class WordGroup:
    """Token positions of one object: of its noun, and of its attributes."""

    noun: tuple[int, ...]
    attributes: tuple[int, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """All of them."""
        return self.noun + self.attributes


def read_groups(technique: str, value: Any) -> tuple[Any, ...]:
    """Read groups for all prompts, or a list of them for each prompt; lists become tuples.

    Raises:
        SettingError: it is neither.
    """
    given: Any = (value,) if isinstance(value, str | Mapping) else value
    if isinstance(given, Sequence):
        items: list[Any] = list(given)  # pyright: ignore[reportUnknownArgumentType]
        are_lists = [isinstance(one, list | tuple) for one in items]
        if items and all(are_lists):
            return tuple(tuple(_read(technique, group) for group in one) for one in items)
        if not any(are_lists):
            return tuple(_read(technique, group) for group in items)
    raise SettingError(
        f"{technique}: groups={value!r} must be a list of objects, {_FORM}; for several prompts a "
        "list for each"
    )


def lists_of(groups: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Lists of groups, one for all prompts or one for each."""
    return list(groups) if groups and isinstance(groups[0], tuple) else [groups]


def locate_groups(
    technique: str, groups: Sequence[Any], prompt: PromptTokens | None, length: int
) -> tuple[WordGroup, ...]:
    """Find the tokens of the groups of one prompt.

    Args:
        technique: Name for messages.
        groups: From `read_groups`.
        prompt: The prompt as the encoder sees it; ``None`` if only its embeddings are known.
        length: Tokens of the text axis.

    Raises:
        WordNotFoundError: a word is not in the prompt, or the prompt is not known.
        SettingError: a position is not on the text axis, or two groups share a token.
    """
    found = tuple(_locate(technique, group, prompt) for group in groups)
    check_positions(technique, "groups", [p for g in found for p in g.positions], length)
    owners: dict[int, int] = {}
    for place, group in enumerate(found):
        for position in group.positions:
            other = owners.setdefault(position, place)
            if other != place:
                raise SettingError(
                    f"{technique}: groups {groups[other]!r} and {groups[place]!r} share token "
                    f"{position}; give each its own words, the second 'circle' as 'circle#2'"
                )
    return found


def _read(technique: str, value: Any) -> Any:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if not isinstance(value, Mapping):
        raise SettingError(f"{technique}: groups: {value!r} is no object; write it {_FORM}")
    given: dict[Any, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]
    for key in given:
        if key not in (NOUN, ATTRIBUTES):
            raise SettingError(
                f"{technique}: groups: unknown key {key!r}; {nearest(str(key), (NOUN, ATTRIBUTES))}"
            )
    words = {key: _words(given.get(key, ())) for key in (NOUN, ATTRIBUTES)}
    if not words[NOUN] or None in words.values():
        raise SettingError(
            f"{technique}: groups: {value!r} must have words of the prompt or token positions "
            f"from 0 as its noun and attributes, {_FORM}"
        )
    return words


def _words(value: Any) -> tuple[str | int, ...] | None:
    """A word, a position or several of them; ``None`` if it is something else."""
    listed: list[Any] = list(value) if isinstance(value, list | tuple) else [value]  # pyright: ignore[reportUnknownArgumentType]
    return tuple(listed) if all(map(is_word, listed)) else None


def _locate(technique: str, group: Any, prompt: PromptTokens | None) -> WordGroup:
    if not isinstance(group, str):
        noun, attributes = (
            tuple(p for found in _find(technique, group[key], prompt) for p in found)
            for key in (NOUN, ATTRIBUTES)
        )
        return WordGroup(noun, tuple(p for p in attributes if p not in noun))
    [inside] = _find(technique, (group,), prompt)
    assert prompt is not None  # otherwise the phrase was not found
    return _split_phrase(group, inside, prompt)


def _find(
    technique: str, words: Sequence[str | int], prompt: PromptTokens | None
) -> list[tuple[int, ...]]:
    return find_tokens(technique, "groups", words, prompt)


def _split_phrase(phrase: str, inside: tuple[int, ...], prompt: PromptTokens) -> WordGroup:
    """The last word of a phrase is the noun, the words before it are attributes."""
    last = split_occurrence(phrase, prompt.text)[0].split()[-1]
    nouns = [span.positions for span in prompt.find(last) if set(span.positions) <= set(inside)]
    return WordGroup(nouns[-1], tuple(p for p in inside if p not in nouns[-1]))
