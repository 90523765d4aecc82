"""Bring the settings back from a picture or a recipe that a visitor dropped in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnctl.errors import RecipeError
from attnctl.imaging import read_record
from attnctl.recipes import Recipe
from attnctl.yaml_files import parse_yaml

from .failures import naming
from .intake import read_recipe
from .settings import Limits

RECIPE_ENDINGS = (".yaml", ".yml", ".json")
MOST_RECIPE_BYTES = 2**20


def read_dropped(path: str, models: tuple[str, ...], limits: Limits) -> Recipe:
    """Read the recipe in a PNG file, or a recipe file; neither is trusted.

    Raises:
        RecipeError: there is no recipe in it, or it is broken.
        SettingError: it asks for a model or a file that is not offered, or for too much.
    """
    file = Path(path)
    with naming(file):
        values = _read(file, limits)
    return read_recipe(values, models, limits)


def _read(file: Path, limits: Limits) -> Any:
    size = file.stat().st_size
    if size > limits.upload_bytes:
        raise RecipeError(f"{file.name!r} is too large: at most {limits.upload_bytes >> 20} MB")
    if file.suffix.lower() not in RECIPE_ENDINGS:
        return read_record(file)["recipe"]
    if size > MOST_RECIPE_BYTES:
        raise RecipeError(f"{file.name!r} is too large for a recipe")
    try:
        return parse_yaml(file.read_text(encoding="utf-8-sig"), file.name)[0]
    except UnicodeDecodeError:
        raise RecipeError(f"{file.name!r} is no text") from None
