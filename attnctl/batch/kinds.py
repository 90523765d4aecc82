"""Kinds of pictures: recipes without prompt and seed, checked once however many rows share them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from attnctl.batch.limits import Fault, Limits
from attnctl.errors import SettingError
from attnctl.pipelines.fitting import (  # pyright: ignore[reportMissingImports]
    find_scheduler,
    words_of,
)
from attnctl.recipes import Recipe, sentences

_SIDE_PX = 8
"""Width and height are multiples of at least this, whatever the model."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What pictures have in common that can be made together.

    Attributes:
        recipe: Everything but prompt and seed.
        base: Its plain values, without prompt and seed, for one picture.
        words: Words that every prompt must contain.
    """

    recipe: Recipe
    base: dict[str, Any]
    words: tuple[str, ...]


class Kinds:
    """Finds the kind of a row.

    Args:
        limits: What jobs may read.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_text: dict[str, int | None] = {}
        self._by_id: dict[str, int] = {}
        self.all: list[Kind] = []

    def find(self, rest: Mapping[str, Any]) -> int | None:
        """Number of the kind; ``None`` if these values cannot be used.

        Args:
            rest: Plain values of a recipe without prompt, seed and count.
        """
        key = _text_of(rest)
        if key not in self._by_text:
            self._by_text[key] = self._make(rest)
        return self._by_text[key]

    def faults(self, values: Mapping[str, Any]) -> list[Fault]:
        """List everything that is wrong with a row."""
        found = self._limits.faults(values)
        safe = dict(values)
        if any(place[0] == "techniques" for place, _ in found):
            safe["techniques"] = []  # reading them could open the file
        found += _scheduler_faults(values.get("scheduler"))
        try:
            recipe = Recipe.model_validate(safe)
        except ValidationError as error:
            return found + [(tuple(place), text) for place, text in sentences(error, Recipe)]
        found += _size_faults(recipe)
        return found + self.word_faults(_kind(recipe), values)

    def word_faults(self, kind: Kind, values: Mapping[str, Any]) -> list[Fault]:
        """List the words that techniques look for and a prompt does not have."""
        prompt = values["prompt"]
        return [
            (("prompt",), f"prompt: {word!r}, which a technique looks for, is not in {text!r:.200}")
            for text in ([prompt] if isinstance(prompt, str) else prompt)
            for word in kind.words
            if word.casefold() not in text.casefold()
        ]

    def _make(self, rest: Mapping[str, Any]) -> int | None:
        if self._limits.faults(rest) or _scheduler_faults(rest.get("scheduler")):
            return None
        try:
            recipe = Recipe.model_validate({**rest, "prompt": ""})
        except ValidationError:
            return None
        if _size_faults(recipe):
            return None
        index = self._by_id.setdefault(recipe.canonical(), len(self.all))
        if index == len(self.all):
            self.all.append(_kind(recipe))
        return index


def _kind(recipe: Recipe) -> Kind:
    one = recipe.changed(prompt="", count=1, seed=None)
    base = {key: value for key, value in one.to_dict().items() if key != "prompt"}
    words = [word for technique in recipe.build_techniques() for word in words_of(technique)]
    return Kind(one, base, tuple(dict.fromkeys(words)))


def _scheduler_faults(name: object) -> list[Fault]:
    if not isinstance(name, str):
        return []
    try:
        find_scheduler(name)
    except SettingError as error:
        return [(("scheduler",), f"scheduler: {error}")]
    return []


def _size_faults(recipe: Recipe) -> list[Fault]:
    if recipe.size_px is None or not any(side % _SIDE_PX for side in recipe.size_px):
        return []
    text = f"size: {recipe.size}: width and height must be multiples of {_SIDE_PX}"
    return [(("size",), text)]


def _text_of(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, sort_keys=True, default=repr)
    except (TypeError, ValueError):  # keys of several types, which cannot be sorted
        return repr(values)
