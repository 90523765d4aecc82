"""The sheets of ``attnctl generate``: with and without techniques, and where each word looked."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from attnctl.cli.results import Result, Shot
from attnctl.recipes import Recipe
from attnctl.sheets import Cell, Row, draw_grid, draw_sheet, overlay_heat


def compare_sheet(
    recipe: Recipe, results: Sequence[Result], words: Sequence[str], *, columns: int
) -> Image.Image:
    """Draw the plain pictures, the steered ones, and a heat map a word, seed by seed."""
    names = " + ".join(entry.name for entry in recipe.techniques)
    rows: list[Row] = []
    for start in range(0, len(results), columns):
        block = results[start : start + columns]
        plain = [result.plain for result in block if result.plain is not None]
        if plain:
            rows.append(_row("without", plain))
        rows.append(_row(f"with {names}" if names else "picture", [r.shot for r in block]))
        for word in words:
            cells = [
                Cell(overlay_heat(r.shot.image, r.shot.heat[word])) for r in block if r.shot.image
            ]
            rows.append(Row(f"where “{word}” looked", cells))
    return draw_sheet(rows, title=_title(recipe))


def grid_sheet(recipe: Recipe, results: Sequence[Result]) -> Image.Image:
    """Draw all pictures as a grid."""
    return draw_grid(_row("", [r.shot for r in results]).cells, title=_title(recipe))


def _row(label: str, shots: Sequence[Shot]) -> Row:
    """Label a row, with the number of pictures that the verifier finds right."""
    cells = [_cell(shot) for shot in shots]
    right = [cell.good for cell in cells if cell.good is not None]
    score = f": {sum(right)} of {len(right)} right" if right else ""
    return Row(label + score, cells)


def _cell(shot: Shot) -> Cell:
    image = shot.image or Image.new("RGB", (1, 1))
    text, good = shot.verdict or ("", None)
    return Cell(image, f"seed {shot.seed}{f': {text}' if text else ''}", good)


def _title(recipe: Recipe) -> str:
    prompts = " | ".join(recipe.prompts)
    shown = prompts if len(prompts) < 100 else prompts[:97] + "..."
    return f"“{shown}”, {recipe.model}, {recipe.steps} steps, guidance {recipe.guidance}"
