"""Prompts on the text axis of attention maps: which columns belong to a word."""

from collections.abc import Sequence

from attnctl.errors import SettingError, WordNotFoundError
from attnctl.map_sums import LayerSum
from attnctl.tokens import PromptTokens

Prompt = PromptTokens | tuple[PromptTokens, ...] | None


def token_columns(positions: Sequence[int], offset: int, layers: Sequence[LayerSum]) -> list[int]:
    """Columns of token positions.

    Raises:
        SettingError: A position has no map.
    """
    tokens = min(layer.tokens for layer in layers)
    for position in positions:
        if not 0 <= position - offset < tokens:
            raise SettingError(
                f"token position {position} has no map; there are maps of positions {offset} to "
                f"{offset + tokens - 1}"
            )
    return [position - offset for position in positions]


def word_columns(
    prompt: Sequence[PromptTokens], offset: int, layers: Sequence[LayerSum]
) -> list[int]:
    """Columns of all real words; of all tokens if the prompt is not known."""
    tokens = min(layer.tokens for layer in layers)
    if not prompt:
        return list(range(tokens))
    columns = (p - offset for segment in prompt for p in segment.word_positions)
    return [column for column in columns if column < tokens]


def segments_of(prompt: Prompt) -> tuple[PromptTokens, ...]:
    """The prompt's stretches of the text axis; encoders that share a stretch count once."""
    if prompt is None:
        return ()
    given = prompt if isinstance(prompt, tuple) else (prompt,)
    return tuple({segment.offset: segment for segment in reversed(given)}.values())[::-1]


def find_positions(prompt: Sequence[PromptTokens], word: str) -> list[int]:
    """Positions of a word in every stretch of the text axis where it stands."""
    positions: list[int] = []
    missing: WordNotFoundError | None = None
    for segment in prompt:
        try:
            positions += [p for span in segment.find(word) for p in span.positions]
        except WordNotFoundError as error:
            missing = missing or error
    if missing is not None and not positions:
        raise missing
    return positions
