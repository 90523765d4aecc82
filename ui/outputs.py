"""The one folder that pictures are saved in, and the copies that browsers are given."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from PIL import Image

from attnctl.cli.results import slug
from attnctl.errors import SettingError
from attnctl.imaging import save_png
from attnctl.pipelines.text_to_image import Picture  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe

from .job import Pair
from .visit import Shown, Visit


class Outputs:
    """Saves pictures.

    Args:
        folder: Where they are kept; names in it come from recipes, never from visitors.
        handed_out: Folder whose files the page may show, each under a name nobody can guess.
    """

    def __init__(self, folder: Path, handed_out: Path) -> None:
        self.folder = folder.resolve()
        self._handed_out = handed_out

    def keep(self, pair: Pair, visit: Visit, *, has_steps: bool = False) -> Shown:
        """Save a picture and its twin, and add them to a visit."""
        kept = self._save(pair.steered)
        if pair.plain is not None:
            self._save(pair.plain)
        recipe, image = pair.steered.recipe, pair.steered.image
        shown = Shown(
            visit.next_key(),
            recipe,
            image,
            pair.plain.image if pair.plain is not None else None,
            self.hand_out(kept),
            caption(recipe, image),
            pair.steered.summary,
            pair.steered.maps,
            has_steps,
        )
        visit.add(shown)
        return shown

    def _save(self, picture: Picture) -> Path:
        recipe = picture.recipe
        names = "+".join(entry.name for entry in recipe.techniques)[:60] or "plain"
        stem = f"{slug(str(recipe.prompt))}-s{recipe.seed}-{slug(names)}-{recipe.id[:6]}"
        target = self.folder / f"{stem}.png"
        if not target.parent.resolve().is_relative_to(self.folder):
            raise SettingError(f"{target.name!r} would leave the folder of the pictures")
        return save_png(picture.image, target, picture.record)

    def hand_out(self, kept: Path) -> Path:
        """Copy a file to where the page may show it, under a name that nobody can guess."""
        target = self.place(kept.name)
        target.parent.mkdir(parents=True)
        shutil.copyfile(kept, target)
        return target

    def place(self, name: str) -> Path:
        """Where a file of that name may be written for the page to show; nothing is made yet."""
        return self._handed_out / secrets.token_hex(16) / name


def caption(recipe: Recipe, image: Image.Image) -> str:
    """Seed, techniques, and for the shapes models what the verifier sees."""
    names = " + ".join(entry.name for entry in recipe.techniques) or "plain"
    return f"seed {recipe.seed} · {names}{_seen(recipe, image)}"


def _seen(recipe: Recipe, image: Image.Image) -> str:
    if not recipe.model.startswith("shapes"):
        return ""
    from attnctl.shapes import verify

    try:
        return f" · {verify(image, str(recipe.prompt)).label()}"
    except ValueError:  # a prompt that names no shapes
        return ""
