"""Recipes to start from: those of the package, and those of a folder of the operator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnctl.recipes import Recipe

from .controls import show_parameters

_OURS = Path(__file__).parent / "assets" / "presets"


def load_presets(models: tuple[str, ...], folder: Path | None = None) -> dict[str, Recipe]:
    """Read recipes whose model is offered; the name of a file is the name of its preset.

    Raises:
        RecipeError: a file of the folder is no recipe.
    """
    files = sorted(_OURS.glob("*.yaml"))
    files += sorted(folder.glob("*.y*ml")) if folder is not None else []
    found = {file.stem.replace("-", " "): Recipe.from_file(file) for file in files}
    return {name: recipe for name, recipe in found.items() if recipe.model in models}


def suggestions(presets: dict[str, Recipe]) -> dict[str, dict[str, dict[str, Any]]]:
    """Settings that presets use, by model and technique, as controls show them; without words."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for recipe in presets.values():
        for entry in recipe.techniques:
            shown = show_parameters(entry.name, entry.parameters)
            shown.pop("subjects", None)
            found.setdefault(recipe.model, {}).setdefault(entry.name, shown)
    return found
