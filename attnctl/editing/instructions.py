"""Instructions of an edit, each by the words that name what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnctl.errors import SettingError, WordNotFoundError
from attnctl.tokens import PromptTokens

Words = tuple[str | int, ...]
Instructions = tuple[Words, ...]


def read_instructions(technique: str, value: Any) -> tuple[Any, ...]:
    """Read instructions for all prompts, or a list of them for each prompt; lists become tuples.

    An instruction is a word, a token position, or a list of them. No instruction at all means one
    without words, which stands for the whole prompt.

    Raises:
        SettingError: it is something else.
    """
    given = _listed(value)
    if given and all(_is_list(one) and any(map(_is_list, one)) for one in given):
        lists = [_read(one) for one in given]
        if None not in lists:
            return tuple(lists)
    flat = _read(given)
    if flat is None:
        raise SettingError(
            f"{technique}: instructions={value!r} must have words or token positions from 0 for "
            "each instruction, such as ['beaver', ['white', 'vest']]; for several prompts a list "
            "of instructions for each, such as [[['beaver']], [['sky'], ['car']]]"
        )
    return flat


def instruction_lists(instructions: tuple[Any, ...]) -> list[Instructions]:
    """Lists of instructions, one for all prompts or one for each."""
    first = instructions[0]
    return list(instructions) if first and isinstance(first[0], tuple) else [instructions]


def instructions_of_items(technique: str, instructions: Any, items: int) -> list[Instructions]:
    """The instructions of each item; items of one prompt share them.

    Raises:
        SettingError: the items are no whole number of lists.
    """
    lists = instruction_lists(instructions)
    if items % len(lists):
        raise SettingError(
            f"{technique}: instructions has {len(lists)} lists for {items} pictures; give one list "
            "for all prompts, or one for each prompt"
        )
    return [one for one in lists for _ in range(items // len(lists))]


def locate_instructions(
    technique: str, instructions: Instructions, prompt: PromptTokens | None, length: int
) -> list[tuple[int, ...]]:
    """Token positions of the words of each instruction of one prompt.

    Args:
        technique: Name for messages.
        instructions: Of this prompt.
        prompt: The prompt as the encoder sees it; ``None`` if only its embeddings are known.
        length: Tokens of the text axis.

    Raises:
        WordNotFoundError: a word is not in the prompt, or the prompt is not known.
        SettingError: a position is not on the text axis, or a prompt has no words at all.
    """
    return [_locate(technique, words, prompt, length) for words in instructions]


def _locate(
    technique: str, words: Words, prompt: PromptTokens | None, length: int
) -> tuple[int, ...]:
    asked = [word for word in words if isinstance(word, str)]
    if prompt is None and (asked or not words):
        missing = repr(asked[0]) if asked else "the words of the whole prompt"
        raise WordNotFoundError(
            f"{technique}: the pipeline was given prompt_embeds, so {missing} cannot be found; "
            "give token positions (BOS is 0) in instructions instead"
        )
    found: list[int] = []
    for word in words:
        if isinstance(word, int):
            found.append(word)
        elif prompt is not None:
            try:
                found += prompt.find(word)[0].positions
            except WordNotFoundError as error:
                raise WordNotFoundError(f"{technique}: instructions: {error}") from None
    if not words and prompt is not None:
        found += prompt.word_positions
    beyond = [position for position in found if position >= length]
    if beyond or not found:
        what = f"there is no token {beyond[0]}" if beyond else "the prompt has no words"
        raise SettingError(
            f"{technique}: instructions: {what}; the text has {length} tokens, 0 to {length - 1}"
        )
    return tuple(dict.fromkeys(found))


def _listed(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _read(given: Sequence[Any]) -> Instructions | None:
    """Instructions of one prompt; ``None`` if a value is none."""
    instructions = tuple(tuple(_listed(one)) for one in given)
    if not all(_is_word(word) for words in instructions for word in words):
        return None
    return instructions or ((),)


def _is_word(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
