"""What ``attnctl edit`` was asked for, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.cli.order import Machine, check_machine
from attnctl.cli.technique_text import read_technique
from attnctl.errors import RecipeError, SettingError
from attnctl.files import sha256_of
from attnctl.picture_files import read_picture
from attnctl.pipelines.edit_pictures import fit_mask  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.edit_settings import (  # pyright: ignore[reportMissingImports]
    EditSettings,
    check_prompts,
)
from attnctl.recipes import Recipe

STEPS = 50
"""Steps of an edit unless somebody chooses; inversions with fewer lose much."""


@dataclass(frozen=True, slots=True)
class EditOrder:
    """One run of ``attnctl edit``.

    Attributes:
        path: The picture's file.
        picture: The picture, upright RGB, as large as the file has it.
        sha256: Hash of the file, which metadata name instead of its folder.
        notes: What was converted when it was read.
        mask: White where the edit may change something, of the picture's size.
        source: What the picture shows.
        recipe: Target prompt, model, techniques, seed, steps.
        settings: Method and its settings.
        machine: On what.
        out: Folder for the files.
        compare: Whether to edit without techniques and with the baselines too.
    """

    path: Path
    picture: Image.Image
    sha256: str
    notes: tuple[str, ...]
    mask: Image.Image | None
    source: str
    recipe: Recipe
    settings: EditSettings
    machine: Machine
    out: Path
    compare: bool


def new_edit_order(
    image: Path,
    source: str,
    fields: Mapping[str, Any],
    techniques: list[str],
    recipe_file: Path | None,
    machine: Machine,
    chosen: Mapping[str, Any],
    *,
    mask: Path | None,
    out: Path,
    compare: bool,
) -> EditOrder:
    """Read the picture and the recipe, check prompts, method, techniques and model.

    Raises:
        SettingError: something cannot be used; nothing was loaded.
    """
    from attnctl.cli.edit_models import refuse_model

    recipe = _recipe(fields, techniques, recipe_file)
    check_prompts(source, str(recipe.prompt))
    given = {name: value for name, value in chosen.items() if value is not None}
    settings = EditSettings(
        steps=recipe.steps or STEPS, guidance=recipe.guidance, seed=recipe.seed or 0,
        negative=recipe.negative, **given,
    )  # fmt: skip
    if not settings.inverts and settings.method != "flow-edit" and recipe.techniques:
        raise SettingError(
            f"--method {settings.method} has no source beside the edit; leave techniques out"
        )
    check_machine(machine)
    read = read_picture(image)
    white = None
    if mask is not None:
        white = fit_mask(read_picture(mask).image, read.image, read.image.size)
    refuse_model(recipe.model)
    digest = sha256_of(image)
    return EditOrder(
        image, read.image, digest, read.notes, white, source, recipe, settings, machine, out,
        compare,
    )  # fmt: skip


def _recipe(fields: Mapping[str, Any], techniques: list[str], recipe_file: Path | None) -> Recipe:
    """The recipe of the target, options over the file's."""
    values = Recipe.from_file(recipe_file).to_dict() if recipe_file else {}
    values.update({name: value for name, value in fields.items() if value is not None})
    if "prompt" not in values:
        raise RecipeError("no target; say with --target what the picture should show")
    if techniques:
        values["techniques"] = [read_technique(text) for text in techniques]
    values["seed"] = values.get("seed") or 0
    recipe = Recipe.from_dict(values, name="")
    if not isinstance(recipe.prompt, str) or recipe.count != 1:
        raise RecipeError("an edit has one target; the recipe asks for several pictures")
    if recipe.scheduler is not None:
        raise RecipeError(
            f"an edit runs with the sampler that its inversion follows back; leave the scheduler "
            f"{recipe.scheduler} out of the recipe"
        )
    return recipe
