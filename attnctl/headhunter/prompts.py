"""Prompts with their seeds, from a file or from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctl.errors import RecipeError
from attnctl.recipes import MAX_PROMPT, MAX_SEED
from attnctl.yaml_files import MAX_BYTES, read_yaml

MOST_PROMPTS = 100_000


@dataclass(frozen=True, slots=True)
class SeededPrompt:
    """A prompt and the seed of its start noise."""

    text: str
    seed: int


def read_prompts(path: str | os.PathLike[str]) -> list[SeededPrompt]:
    """Read prompts from a file.

    A ``.yaml`` or ``.json`` file is a list of texts and of ``{prompt: ..., seed: ...}``; any other
    file has one prompt a line. A prompt without a seed has its place in the list, from 0.

    Raises:
        RecipeError: the file cannot be read, or listing every prompt that is wrong.
    """
    name = os.fspath(path)
    if Path(path).suffix.lower() in (".yaml", ".yml", ".json"):
        values, lines = read_yaml(name)
        if not isinstance(values, list):
            raise RecipeError(f"{name}: not a list; write one `- a prompt` a line")
        return as_prompts(values, name, [lines.get((place,), 0) for place in range(len(values))])
    texts = _lines(Path(path), name)
    return as_prompts([text for _, text in texts], name, [line for line, _ in texts])


def as_prompts(
    values: Sequence[Any], name: str = "prompts", lines: Sequence[int] | None = None
) -> list[SeededPrompt]:
    """Check prompts: texts, mappings with ``prompt`` and ``seed``, or :class:`SeededPrompt`.

    Raises:
        RecipeError: listing everything that is wrong, one a line.
    """
    if isinstance(values, str) or not 1 <= len(values) <= MOST_PROMPTS:
        raise RecipeError(f"{name}: give a list of 1 to {MOST_PROMPTS} prompts")
    read: list[SeededPrompt] = []
    problems: list[str] = []
    for place, value in enumerate(values):
        where = f"{name}:{lines[place]}" if lines else f"{name}[{place}]"
        try:
            one = _read(value, place)
            if one in read:
                raise ValueError(f"{one.text!r:.80} with seed {one.seed} is there twice; keep one")
            read.append(one)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise RecipeError("\n".join(problems))
    return read


def _read(value: Any, place: int) -> SeededPrompt:
    if isinstance(value, SeededPrompt):
        value = {"prompt": value.text, "seed": value.seed}
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, Mapping) or not set(value) <= {"prompt", "seed"}:  # pyright: ignore[reportUnknownArgumentType]
        raise ValueError(f"{value!r:.80} is no text and no {{prompt: ..., seed: ...}}")
    text, seed = value.get("prompt"), value.get("seed", place)
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_PROMPT:
        raise ValueError(f"the prompt {text!r:.80} is no text; put quotes around a number")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed!r:.80} is no whole number from 0 to {MAX_SEED}")
    return SeededPrompt(text, seed)


def _lines(path: Path, name: str) -> list[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    if not path.is_file():
        raise RecipeError(f"there is no file {name!r}")
    if path.stat().st_size > MAX_BYTES:
        raise RecipeError(f"{name}: larger than {MAX_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{name}: not UTF-8; save the file as UTF-8") from None
    lines = enumerate(text.split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]
