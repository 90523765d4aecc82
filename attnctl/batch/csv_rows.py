"""Rows of a CSV file: the first line names the keys, an empty cell leaves a key out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from attnctl.batch.edits import EDIT_KEYS
from attnctl.batch.problems import Problems, Spot
from attnctl.batch.rows import Row, text_lines
from attnctl.errors import RecipeError, nearest
from attnctl.recipes import Recipe
from attnctl.yaml_files import Place

_KEYS = frozenset(Recipe.model_fields) | EDIT_KEYS
_NUMBERS: dict[str, type[int] | type[float]] = {
    "seed": int,
    "count": int,
    "steps": int,
    "guidance": float,
    "frames": int,
    "fps": float,
}


class _Record:
    """Lines of the record that the reader is in."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self._lines = lines
        self.start, self.text = 0, ""

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            self.start = self.start if self.text else number
            self.text += line
            yield line

    def forget(self) -> None:
        self.text = ""


def read_csv(path: Path, problems: Problems) -> Iterator[Row]:
    """Read comma-separated values; ``techniques`` are JSON, or as for ``-t`` with ``;`` between."""
    record = _Record(text_lines(path, problems))
    rows = csv.reader(record, strict=True)
    keys: list[str] | None = None
    while True:
        record.forget()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problems.add((record.start, 1), f"not CSV: {error}; the rest is not read")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if keys is None:
            keys = _read_header(cells, record, problems)
            continue
        row = _read_row(keys, cells, record, problems)
        if row is not None:
            yield row


def _read_header(cells: list[str], record: _Record, problems: Problems) -> list[str]:
    keys = [cell.strip() for cell in cells]
    if len(keys) == 1 and (";" in keys[0] or "\t" in keys[0]):
        problems.add((record.start, 1), "one column only; separate the columns with commas")
    for position, key in enumerate(keys):
        spot = (record.start, _column(record.text, position))
        if key in keys[:position]:
            problems.add(spot, f"the column {key!r} is there twice")
        elif key not in _KEYS:
            problems.add(spot, f"unknown column {key!r}; {nearest(key, _KEYS)}")
    return keys


def _read_row(
    keys: Sequence[str], cells: Sequence[str], record: _Record, problems: Problems
) -> Row | None:
    if len(cells) != len(keys):
        problems.add(
            (record.start, 1),
            f"{len(cells)} cells for {len(keys)} columns; put quotes around a cell with commas",
        )
        return None
    locate = partial(_locate, record.start, record.text, tuple(keys))
    values: dict[str, Any] = {}
    for key, cell in zip(keys, cells, strict=True):
        if not cell.strip() or key not in _KEYS:
            continue
        try:
            values[key] = _read_cell(key, cell)
        except RecipeError as error:
            problems.add(locate((key,)), f"{key}: {error}")
    return Row(values, record.start, locate)


def _read_cell(key: str, cell: str) -> Any:
    if key == "techniques":
        return _read_techniques(cell)
    kind = _NUMBERS.get(key)
    if kind is None:
        return cell
    try:
        return kind(cell)
    except ValueError:
        return cell  # the check of the row says what is wrong with it


@lru_cache(maxsize=1024)
def _read_techniques(cell: str) -> Any:
    from attnctl.cli.technique_text import read_technique

    if cell.lstrip()[:1] == "[":
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            raise RecipeError(f"{cell[:100]!r} is no JSON list") from None
    return [read_technique(text.strip()) for text in cell.split(";") if text.strip()]


def _locate(start: int, text: str, keys: tuple[str, ...], place: Place) -> Spot:
    key = place[0] if place else None
    if key not in keys:
        return (start, 1) if not place else (1, 1)
    column = _column(text, keys.index(str(key)))
    before = text[: column - 1]
    return start + before.count("\n"), len(before) - (before.rfind("\n") + 1) + 1


def _column(text: str, position: int) -> int:
    """Character, from 1, at which the cell at ``position`` starts."""
    is_quoted = False
    for at, letter in enumerate(text):
        if position == 0:
            return at + 1
        if letter == '"':
            is_quoted = not is_quoted
        elif letter == "," and not is_quoted:
            position -= 1
    return max(1, len(text))
