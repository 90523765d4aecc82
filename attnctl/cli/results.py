"""Finished pictures: their files, what the verifier says of them, and how they are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnctl.cli.order import Order
from attnctl.imaging import open_picture, save_png
from attnctl.pipelines.text_to_image import Picture  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe
from attnctl.sheets import overlay_heat


@dataclass(slots=True)
class Shot:
    """One saved picture; ``image`` and ``heat`` are kept only for the sheets."""

    path: Path
    prompt: str
    seed: int
    seconds: float
    verdict: tuple[str, bool] | None
    image: Image.Image | None
    heat: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        values = {
            "path": str(self.path),
            "prompt": self.prompt,
            "seed": self.seed,
            "seconds": round(self.seconds, 3),
        }
        if self.verdict:
            values |= {"verdict": self.verdict[0], "all_right": self.verdict[1]}
        return values


@dataclass(slots=True)
class Result:
    """A picture, its twin without techniques, and its heat maps."""

    shot: Shot
    plain: Shot | None = None
    heat_paths: dict[str, Path] = field(default_factory=dict[str, Path])
    is_identical: bool | None = None

    def forget_pixels(self) -> None:
        """Drop what only sheets need."""
        for shot in (self.shot, self.plain):
            if shot is not None:
                shot.image, shot.heat = None, {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        values = self.shot.to_dict()
        if self.heat_paths:
            values["heatmaps"] = {word: str(path) for word, path in self.heat_paths.items()}
        if self.plain is not None:
            values["plain"] = self.plain.to_dict()
        if self.is_identical is not None:
            values["identical"] = self.is_identical
        return values

    def line(self, number: int, count: int) -> str:
        """Say on one line how it went."""
        shot = self.shot
        seen = f", {shot.verdict[0]}" if shot.verdict else ""
        return f"picture {number} of {count}: seed {shot.seed}, {shot.seconds:.1f} s{seen}"


def save_result(order: Order, picture: Picture, plain: Picture | None) -> Result:
    """Save a picture, its twin and its heat maps, each under a name that tells what it is."""
    path = order.out / f"{_stem(picture.recipe)}.png"
    is_identical = None
    if order.source is not None:
        before = open_picture(order.source)
        is_identical = before.tobytes() == picture.image.convert(before.mode).tobytes()
        if path.exists() and path.samefile(order.source):
            path = path.with_name(f"{path.stem}-again.png")
    result = Result(_save(picture, path), is_identical=is_identical)
    if plain is not None:
        result.plain = _save(plain, order.out / f"{_stem(plain.recipe)}.png")
    for word, heat in picture.heat.items():
        target = path.with_name(f"{path.stem}-heat-{slug(word)}.png")
        result.heat_paths[word] = save_png(overlay_heat(picture.image, heat), target)
    return result


def slug(text: str) -> str:
    """Write a text so that it can be part of any file name."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:48].strip("-") or "picture"


def _save(picture: Picture, path: Path) -> Shot:
    save_png(picture.image, path, picture.record)
    recipe: Recipe = picture.recipe
    prompt, seed = str(recipe.prompt), recipe.seed or 0
    seen = _verdict(recipe, picture.image)
    return Shot(path, prompt, seed, picture.seconds, seen, picture.image, picture.heat)


def _verdict(recipe: Recipe, image: Image.Image) -> tuple[str, bool] | None:
    """Let the program look at a picture of the shapes world; ``None`` for other pictures."""
    if not recipe.model.startswith("shapes"):
        return None
    from attnctl.shapes import verify

    try:
        seen = verify(image, str(recipe.prompt))
    except ValueError:  # a prompt that names no shapes
        return None
    label = seen.label()
    return (f"all there, {label}" if seen.all_right and not seen.exact else label), seen.all_right


def _stem(recipe: Recipe) -> str:
    """File name that says what is in it, and that only an equal recipe shares."""
    names = "+".join(entry.name for entry in recipe.techniques)[:60] or "plain"
    return f"{slug(str(recipe.prompt))}-s{recipe.seed}-{names}-{recipe.id[:6]}"
