"""Words of a prompt as settings: given by name or as token positions, once or for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from attnctl.errors import SettingError, WordNotFoundError
from attnctl.tokens import PromptTokens

Word = str | int
Words = tuple[Word, ...]
List = TypeVar("List")


def is_word(value: Any, first: int = 0) -> bool:
    """Whether a value is a word, or a token position from ``first`` on."""
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int) and not isinstance(value, bool) and value >= first


def spread(technique: str, name: str, lists: Sequence[List], items: int) -> list[List]:
    """The list of each item of a run; the pictures of one prompt share its list.

    Args:
        technique: Name for messages.
        name: Of the setting.
        lists: One for all prompts, or one for each.
        items: Pictures of the run.

    Raises:
        SettingError: the items are no whole number of lists.
    """
    if items % len(lists):
        raise SettingError(
            f"{technique}: {name} has {len(lists)} lists for {items} pictures; give one list for"
            " all prompts, or one for each prompt"
        )
    return [one for one in lists for _ in range(items // len(lists))]


def find_tokens(
    technique: str,
    name: str,
    words: Sequence[Word],
    prompt: PromptTokens | None,
    length: int | None = None,
) -> list[tuple[int, ...]]:
    """Token positions of each word of one prompt: all tokens of its first occurrence.

    Args:
        technique: Name for messages.
        name: Of the setting.
        words: Words, or positions (BOS is 0).
        prompt: The prompt as the encoder sees it; ``None`` if only its embeddings are known.
        length: Tokens of the text axis, to check positions by.

    Raises:
        WordNotFoundError: a word is not in the prompt, or the prompt is not known.
        SettingError: a position is not on the text axis.
    """
    texts = [word for word in words if isinstance(word, str)]
    if prompt is None and texts:
        raise prompt_unknown(technique, name, repr(texts[0]))
    found: list[tuple[int, ...]] = []
    for word in words:
        if isinstance(word, int):
            found.append((word,))
        elif prompt is not None:
            try:
                found.append(prompt.find(word)[0].positions)
            except WordNotFoundError as error:
                raise WordNotFoundError(f"{technique}: {name}: {error}") from None
    check_positions(technique, name, [p for positions in found for p in positions], length)
    return found


def check_positions(
    technique: str, name: str, positions: Sequence[int], length: int | None
) -> None:
    """Refuse positions that are not on the text axis.

    Raises:
        SettingError: one is not.
    """
    beyond = [] if length is None else [p for p in positions if p >= length]
    if beyond:
        raise SettingError(
            f"{technique}: {name}: there is no token {beyond[0]}; the text has {length} tokens,"
            f" 0 to {(length or 1) - 1}"
        )


def prompt_unknown(technique: str, name: str, what: str) -> WordNotFoundError:
    """The error for words in a prompt of which only the embeddings are known."""
    return WordNotFoundError(
        f"{technique}: the pipeline was given prompt_embeds, so {what} cannot be found; give token"
        f" positions (BOS is 0) in {name} instead"
    )
