"""The sheets of ``attnctl generate``: with and without techniques, and where each word looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from attnctl.pipelines.text_to_image import Picture  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe
from attnctl.sheets import Cell, Row, draw_grid, draw_sheet, overlay_heat

if TYPE_CHECKING:
    from attnctl.cli.studio import Result


def compare_sheet(
    recipe: Recipe, results: Sequence[Result], words: Sequence[str], *, columns: int
) -> Image.Image:
    """Draw the plain pictures, the steered ones, and a heat map a word, seed by seed."""
    names = " + ".join(entry.name for entry in recipe.techniques) or "no technique"
    rows: list[Row] = []
    for start in range(0, len(results), columns):
        block = results[start : start + columns]
        plain = [result.plain for result in block if result.plain is not None]
        if plain:
            rows.append(_row(recipe, "without", plain))
        label = f"with {names}" if recipe.techniques else "picture"
        rows.append(_row(recipe, label, [result.picture for result in block]))
        for word in words:
            cells = [Cell(overlay_heat(r.picture.image, r.picture.heat[word])) for r in block]
            rows.append(Row(f"where “{word}” looked", cells))
    return draw_sheet(rows, title=_title(recipe))


def grid_sheet(recipe: Recipe, results: Sequence[Result]) -> Image.Image:
    """Draw all pictures as a grid."""
    return draw_grid([_cell(recipe, r.picture) for r in results], title=_title(recipe))


def _row(recipe: Recipe, label: str, pictures: Sequence[Picture]) -> Row:
    """Label a row, with the number of pictures that the verifier finds right."""
    cells = [_cell(recipe, picture) for picture in pictures]
    right = [cell.good for cell in cells if cell.good is not None]
    score = f": {sum(right)} of {len(right)} right" if right else ""
    return Row(label + score, cells)


def _cell(recipe: Recipe, picture: Picture) -> Cell:
    from attnctl.cli.studio import verdict

    seen = verdict(recipe, picture)
    seed = f"seed {picture.recipe.seed}"
    return Cell(picture.image, f"{seed}: {seen[0]}", seen[1]) if seen else Cell(picture.image, seed)


def _title(recipe: Recipe) -> str:
    prompts = " | ".join(recipe.prompts)
    shown = prompts if len(prompts) < 100 else prompts[:97] + "..."
    return f"“{shown}”, {recipe.model}, {recipe.steps} steps, guidance {recipe.guidance}"
