"""Instructions of an edit, each by the words that name what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attnctl.errors import SettingError
from attnctl.named_words import Words, find_tokens, is_word, prompt_unknown
from attnctl.tokens import PromptTokens

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
    if not words:
        if prompt is None:
            raise prompt_unknown(technique, "instructions", "the words of the whole prompt")
        if not prompt.word_positions:
            raise SettingError(f"{technique}: instructions: the prompt has no words")
        return tuple(prompt.word_positions)
    found = find_tokens(technique, "instructions", words, prompt, length)
    return tuple(dict.fromkeys(p for positions in found for p in positions))


def _listed(value: Any) -> list[Any]:
    return list(value) if _is_list(value) else [value]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _read(given: Sequence[Any]) -> Instructions | None:
    """Instructions of one prompt; ``None`` if a value is none."""
    instructions = tuple(tuple(_listed(one)) for one in given)
    if not all(is_word(word) for words in instructions for word in words):
        return None
    return instructions or ((),)
