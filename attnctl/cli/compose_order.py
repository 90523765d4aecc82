"""What ``attnctl compose`` was asked for, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.cli.edit_models import refuse_model
from attnctl.cli.order import Machine, check_machine
from attnctl.cli.technique_text import read_technique
from attnctl.files import sha256_of
from attnctl.ops.bounded_attention import Box
from attnctl.picture_files import read_picture
from attnctl.pipelines.compose import FAMILY, check_words  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.compose_places import read_box  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.compose_settings import (  # pyright: ignore[reportMissingImports]
    ComposeSettings,
)
from attnctl.pipelines.edit_pictures import fit_mask  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe


@dataclass(frozen=True, slots=True)
class ComposeOrder:
    """One run of ``attnctl compose``.

    Attributes:
        background: Picture of the scene, upright RGB, as large as its file has it.
        subject: Picture of the object.
        mask: White where the object is, of the size of ``subject``; ``None``: everywhere.
        box: Where it goes, in parts of the scene.
        words: The object's words.
        files: Name and hash of each picture's file, which metadata name instead of its folder.
        notes: What was converted when the pictures were read.
        recipe: Prompt, model, further techniques, seed.
        settings: Style of the scene, and how to compose.
        machine: On what.
        out: Folder for the files.
        compare: Whether to compose without infusion and confined words too.
    """

    background: Image.Image
    subject: Image.Image
    mask: Image.Image | None
    box: Box
    words: tuple[str, ...]
    files: dict[str, dict[str, str]]
    notes: tuple[str, ...]
    recipe: Recipe
    settings: ComposeSettings
    machine: Machine
    out: Path
    compare: bool


def new_compose_order(
    background: Path,
    subject: Path,
    mask: Path | None,
    box: str,
    words: str,
    fields: Mapping[str, Any],
    techniques: list[str],
    machine: Machine,
    chosen: Mapping[str, Any],
    *,
    out: Path,
    compare: bool,
) -> ComposeOrder:
    """Read the pictures, check box, words, settings, techniques and model.

    Raises:
        SettingError: something cannot be used; nothing was loaded.
    """
    values = {name: value for name, value in fields.items() if value is not None}
    if techniques:
        values["techniques"] = [read_technique(text) for text in techniques]
    recipe = Recipe.from_dict({"seed": 0, **values}, name="")
    named = tuple(word.strip() for word in words.split(",") if word.strip())
    check_words(str(recipe.prompt), named)
    own: dict[str, Any] = {**chosen, "steps": recipe.steps, "guidance": recipe.guidance}
    given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    settings = ComposeSettings(seed=recipe.seed or 0, negative=recipe.negative, **given)
    place = read_box(box)
    check_machine(machine)
    paths = {"background": background, "object": subject}
    read = {name: read_picture(path) for name, path in paths.items()}
    white = None
    if mask is not None:
        pictured = read["object"].image
        white, paths["mask"] = fit_mask(read_picture(mask).image, pictured, pictured.size), mask
    refuse_model(recipe.model, (FAMILY,), "compose")
    files = {name: {"name": path.name, "sha256": sha256_of(path)} for name, path in paths.items()}
    notes = tuple(f"{paths[name]}: {note}" for name, one in read.items() for note in one.notes)
    return ComposeOrder(
        read["background"].image, read["object"].image, white, place, named, files, notes, recipe,
        settings, machine, out, compare,
    )  # fmt: skip
