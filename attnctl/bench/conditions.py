"""The conditions that a steering benchmark compares: plain, and each technique or recipe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctl.cli.technique_text import read_technique
from attnctl.errors import SettingError, nearest
from attnctl.recipes import Recipe
from attnctl.registry import find_technique
from attnctl.shapes.captions import ObjectKind, Prompt

PLAIN = "plain"
SUBJECT_KINDS = ("noun", "colour", "both")
_SUBJECT = "subject"  # our own key in -t: which words become subjects
_SUBJECTS = "subjects"
_GROUPS = "groups"
_BOXES = "boxes"
_WORDS, _REGION, _REGIONS = "words", "region", "regions"


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to make the pictures.

    Attributes:
        name: What tables call it.
        techniques: Name and plain parameters of each technique, in order.
        subject: Which words of a prompt become ``subjects`` where a technique takes them and
            none are given: ``noun``, ``colour`` or ``both``.
        guidance: Weight of classifier-free guidance; ``None`` takes that of the measurement.
    """

    name: str
    techniques: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    subject: str = "noun"
    guidance: float | None = None

    @property
    def slug(self) -> str:
        """The name as a part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")[:60] or "condition"

    def entries(self, prompts: Sequence[Prompt]) -> list[dict[str, dict[str, Any]]]:
        """List the techniques as a recipe does, with words and boxes of each prompt filled in."""
        made: list[dict[str, dict[str, Any]]] = []
        for name, parameters in self.techniques:
            filled = dict(parameters)
            if not {_WORDS, _REGION, _REGIONS} & set(filled) and _takes(name, _REGIONS):
                filled[_REGIONS] = boxes_of(len(prompts[0].objects))
                filled[_WORDS] = [groups_of(p.objects) for p in prompts]
            if _BOXES not in filled and _takes(name, _BOXES):
                filled[_BOXES] = [boxes_of(len(p.objects)) for p in prompts]
                filled.setdefault(_SUBJECTS, [groups_of(p.objects) for p in prompts])
            if _SUBJECTS not in filled and _takes(name, _SUBJECTS):
                filled[_SUBJECTS] = [subjects_of(p.objects, self.subject) for p in prompts]
            if _GROUPS not in filled and _takes(name, _GROUPS):
                filled[_GROUPS] = [groups_of(p.objects) for p in prompts]
            made.append({name: filled})
        return made

    def guidance_or(self, usual: float) -> float:
        """Its own weight of classifier-free guidance, else the usual one."""
        return float(usual if self.guidance is None else self.guidance)

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        listed = [{name: dict(parameters)} for name, parameters in self.techniques]
        needs_words = any(
            _takes(name, _SUBJECTS) and _SUBJECTS not in given for name, given in self.techniques
        )
        words = {_SUBJECT: self.subject} if needs_words else {}
        own = {} if self.guidance is None else {"guidance": self.guidance}
        return {"name": self.name, "techniques": listed, **words, **own}


def subjects_of(objects: Sequence[ObjectKind], kind: str = "noun") -> list[str]:
    """List the words that name a prompt's objects.

    Args:
        objects: The objects in the prompt's order.
        kind: ``noun`` gives shapes, ``colour`` colours, ``both`` colour and shape of each.

    Returns:
        Words in the prompt's order; the second occurrence of a word is written ``circle#2``.
    """
    words: list[str] = []
    for one in objects:
        named = {"noun": [one.shape], "colour": [one.colour], "both": [one.colour, one.shape]}
        words += named[kind]
    return _numbered(words)


def groups_of(objects: Sequence[ObjectKind]) -> list[str]:
    """List a prompt's objects as ``groups``: colour and shape, numbered if they repeat."""
    return _numbered([str(one) for one in objects])


def boxes_of(count: int) -> list[list[float]]:
    """Squares side by side, one for each object, left, top, right and bottom in [0, 1]."""
    side = 1 / max(count, 2) - 0.06
    centres = [(place + 0.5) / count for place in range(count)]
    return [[x - side / 2, 0.5 - side / 2, x + side / 2, 0.5 + side / 2] for x in centres]


def _numbered(words: Sequence[str]) -> list[str]:
    """Tell the second occurrence of a word or phrase from the first."""
    numbered: list[str] = []
    for place, word in enumerate(words):
        number = words[: place + 1].count(word)
        numbered.append(word if number == 1 else f"{word}#{number}")
    return numbered


def read_conditions(texts: Sequence[str], recipes: Sequence[Path]) -> list[Condition]:
    """Read ``-t`` values and recipe files; plain comes first.

    Raises:
        SettingError: a value cannot be used, or two conditions are the same.
    """
    return with_own_names([Condition(PLAIN), *map(_of_text, texts), *map(_of_recipe, recipes)])


def with_own_names(conditions: list[Condition]) -> list[Condition]:
    """Refuse conditions that would share a name or a file.

    Raises:
        SettingError: two conditions are the same.
    """
    for key in ("name", "slug"):
        seen = [getattr(condition, key) for condition in conditions]
        for one in seen:
            if seen.count(one) > 1:
                raise SettingError(f"two conditions are called {one!r}; make them differ")
    return conditions


def _of_text(text: str) -> Condition:
    [(name, parameters)] = read_technique(text).items()
    subject = "noun"
    if _SUBJECT in parameters and _takes(name, _SUBJECTS):
        subject = str(parameters.pop(_SUBJECT))
        if subject not in SUBJECT_KINDS:
            raise SettingError(
                f"-t {text!r}: subject={subject!r}; {nearest(subject, SUBJECT_KINDS)}"
            )
    condition = Condition(text.strip(), ((name, parameters),), subject)
    _check(condition)
    return condition


def _of_recipe(path: Path) -> Condition:
    recipe = Recipe.from_file(path)
    if not recipe.techniques:
        raise SettingError(f"{str(path)!r} has no techniques; plain pictures are made anyway")
    listed = tuple((entry.name, entry.parameters) for entry in recipe.techniques)
    return Condition(path.stem, listed)


def _check(condition: Condition) -> None:
    """Let the techniques check their names and values before anything is loaded."""
    sample = Prompt("a red circle", (ObjectKind("red", "circle"),), 0)
    Recipe.from_dict({"prompt": sample.text, "techniques": condition.entries([sample])}, name="")


def _takes(technique: str, parameter: str) -> bool:
    return any(f.name == parameter for f in dataclasses.fields(find_technique(technique)))
