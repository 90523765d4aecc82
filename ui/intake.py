"""What comes from a visitor becomes a checked recipe: no model, file or address of theirs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from attnctl.errors import RecipeError, SettingError, nearest
from attnctl.recipes import Recipe

from .controls import Control, controls_of
from .settings import Limits

_NUMBERS = re.compile(r"[\d\s.,%+x-]*")
_KINDS_OF_TEXT = ("text", "choice", "steps", "where", "words")


def read_recipe(values: Any, models: tuple[str, ...], limits: Limits) -> Recipe:
    """Check plain values that a visitor sent.

    Recipes of files may name models and files; those of visitors may not. Everything that could
    be a path is refused before the recipe is built, since building it is what reads files.

    Raises:
        RecipeError: listing what is wrong.
        SettingError: a model that is not offered, a file, or more than the limits allow.
    """
    if not isinstance(values, Mapping):
        raise RecipeError("this is no recipe; it needs at least a prompt")
    plain: dict[str, Any] = dict(values)
    model = plain.get("model", models[0])
    if model not in models:
        raise SettingError(
            f"the model {model!r:.100} is not offered; {nearest(str(model), models)}"
        )
    try:
        check_entries(plain.get("techniques"), limits)
        recipe = Recipe.from_dict({**plain, "model": model}, name="")
    except RecursionError:
        raise RecipeError("the recipe is nested too deeply") from None
    _check_limits(recipe, limits)
    return recipe


def _check_limits(recipe: Recipe, limits: Limits) -> None:
    if not isinstance(recipe.prompt, str):
        raise SettingError("one prompt at a time; `attnctl generate` takes lists")
    if not recipe.prompt.strip():
        raise SettingError("the prompt is empty; write what the picture shows")
    for text in (recipe.prompt, recipe.negative or ""):
        if len(text) > limits.prompt_letters:
            raise SettingError(
                f"a prompt of {len(text)} letters; at most {limits.prompt_letters} are taken"
            )
    allowed = {"count": limits.pictures, "steps": limits.steps}
    for name, most in allowed.items():
        if (getattr(recipe, name) or 0) > most:
            raise SettingError(f"{name} {getattr(recipe, name)} is above the limit of {most}")
    if max(recipe.size_px or (0, 0)) > limits.side_px:
        raise SettingError(f"size {recipe.size} is above the limit of {limits.side_px} pixels")


def check_entries(entries: Any, limits: Limits) -> None:
    """Refuse files and huge numbers in a list of techniques, before they are built.

    Raises:
        RecipeError: this is no list.
        SettingError: a technique is unknown, there are too many, or a value is not taken.
    """
    if entries is None:
        return
    if not isinstance(entries, list):
        raise RecipeError("techniques must be a list")
    if len(entries) > limits.techniques:
        raise SettingError(f"{len(entries)} techniques; at most {limits.techniques} are taken")
    for entry in entries:
        for name, parameters in _short_form(entry):
            known = {control.name: control for control in controls_of(name)}
            for key, value in parameters.items():
                _refuse_file(name, str(key), value, known.get(str(key)))
                _refuse_huge(name, str(key), value, limits)


def _short_form(entry: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and parameters of an entry; what has another form, the recipe refuses."""
    if isinstance(entry, str):
        yield entry, {}
    elif isinstance(entry, Mapping):
        pairs = [(entry["name"], entry.get("parameters"))] if "name" in entry else entry.items()
        for name, parameters in pairs:
            yield str(name), parameters if isinstance(parameters, Mapping) else {}


def _refuse_file(name: str, key: str, value: Any, control: Control | None) -> None:
    """Let texts through only where a text is meant; elsewhere they may be names of files."""
    if isinstance(value, list) and control is not None and control.reads_files:
        value = next((one for one in value if isinstance(one, str)), None)
    if not isinstance(value, str) or (control and control.kind in _KINDS_OF_TEXT):
        return
    if control is None or control.reads_files or not _NUMBERS.fullmatch(value):
        raise SettingError(
            f"{name}: {key}={value!r:.100} is not taken here: the studio reads no files; "
            "write the values themselves"
        )


def _refuse_huge(name: str, key: str, value: Any, limits: Limits) -> None:
    if key == "seed":
        return
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    for one in value if isinstance(value, list) else [value]:
        is_number = isinstance(one, int | float) and math.isfinite(one)
        if is_number and abs(one) > limits.number:
            raise SettingError(f"{name}: {key} holds {one:g}; at most {limits.number:g} is taken")
