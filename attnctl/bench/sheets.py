"""Contact sheets of a steering benchmark: the first pictures, and those whose verdict changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.conditions import PLAIN
from attnctl.bench.steering import Steering
from attnctl.imaging import save_png
from attnctl.sheets import CELL_PX, PAPER, Cell, Row, draw_sheet

COLUMNS = 8
SHOWN = 16
"""So many prompts of each number of objects are shown, and so many changes in each direction."""

Entry = Mapping[str, Any]


def save_sheets(steering: Steering, most: int = SHOWN) -> dict[str, Path]:
    """Draw the sheets into the folder of the measurement.

    Args:
        steering: A finished measurement.
        most: Prompts of each number of objects, and changes in each direction.

    Returns:
        Paths by name: ``first``, and ``changed-N`` for condition ``N`` where verdicts changed.
    """
    by_name = {
        name: {e["id"]: e for e in steering.entries if e["condition"] == name}
        for name in steering.conditions
    }
    paths = {"first": save_png(_first(steering, by_name, most), steering.folder / "sheet.png")}
    for number, name in enumerate(steering.conditions[1:], 1):
        sheet = _changed(steering, by_name[PLAIN], by_name[name], name, most)
        if sheet is not None:
            file = steering.folder / f"changed-{number}.png"
            paths[f"changed-{number}"] = save_png(sheet, file)
    return paths


def _first(
    steering: Steering, by_name: Mapping[str, Mapping[str, Entry]], most: int
) -> Image.Image:
    rows: list[Row] = []
    settings = steering.record["settings"]
    for number in settings["objects"]:
        names = [i for i, e in by_name[PLAIN].items() if len(e["wanted"]) == number][:most]
        for start in range(0, len(names), COLUMNS):
            rows += _block(steering, by_name, names[start : start + COLUMNS])
    return draw_sheet(rows, title=f"First prompts of the list, not picked; {_title(settings)}")


def _block(
    steering: Steering, by_name: Mapping[str, Mapping[str, Entry]], names: Sequence[str]
) -> list[Row]:
    rows = [_prompt_row([by_name[PLAIN][name] for name in names])]
    for condition, entries in by_name.items():
        rows.append(Row(condition, [_cell(steering, entries[name]) for name in names]))
    return rows


def _changed(
    steering: Steering,
    plain: Mapping[str, Entry],
    steered: Mapping[str, Entry],
    condition: str,
    most: int,
) -> Image.Image | None:
    rows: list[Row] = []
    counts: list[str] = []
    for word, becomes in (("better", True), ("worse", False)):
        names = [
            i for i in plain
            if plain[i]["all_right"] != becomes and steered[i]["all_right"] == becomes
        ]  # fmt: skip
        counts.append(f"{len(names)} {word}")
        shown = names[:most]
        for start in range(0, len(shown), COLUMNS):
            part = shown[start : start + COLUMNS]
            rows.append(_prompt_row([plain[i] for i in part]))
            rows.append(Row(f"{word}: {PLAIN}", [_cell(steering, plain[i]) for i in part]))
            label = f"{word}: with {condition}"
            rows.append(Row(label, [_cell(steering, steered[i]) for i in part]))
    if not rows:
        return None
    what = f"Pictures that changed between wrong and all right ({', '.join(counts)}; the first"
    title = f"{what} {most} each); {condition}; {_title(steering.record['settings'])}"
    return draw_sheet(rows, title=title)


def _prompt_row(entries: Sequence[Entry]) -> Row:
    """Draw the prompts above their pictures, as captions of thin lines."""
    line = Image.new("RGB", (CELL_PX, 1), PAPER)
    return Row("prompt", [Cell(line, str(entry["prompt"])) for entry in entries])


def _cell(steering: Steering, entry: Entry) -> Cell:
    return Cell(steering.picture(entry), str(entry["verdict"]), bool(entry["all_right"]))


def _title(settings: Mapping[str, Any]) -> str:
    return (
        f"{settings['model']}, prompts of {settings['split']}, {settings['steps']} steps, "
        f"guidance {settings['guidance']}"
    )
