"""Rows of a job file, one after the other, each with the places of its values."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnctl.batch.problems import JobFileError, Problems, Spot
from attnctl.errors import nearest
from attnctl.yaml_files import Place

MAX_LINE = 4_000_000
"""Longest line of a JSONL or CSV file, in bytes."""

HEADER_KEYS = frozenset({"defaults", "matrix"})

Locate = Callable[[Place], Spot]


@dataclass(frozen=True, slots=True)
class Row:
    """What a file says about one job, or about all that follow.

    Attributes:
        values: Plain values by key.
        line: Where it starts.
        locate: Finds the line and column of a value by its keys and list positions.
    """

    values: dict[str, Any]
    line: int
    locate: Locate

    @property
    def is_header(self) -> bool:
        """Whether it sets ``defaults:`` or ``matrix:`` for what follows."""
        return bool(self.values) and self.values.keys() <= HEADER_KEYS


@dataclass(slots=True)
class Header:
    """``defaults:`` and ``matrix:``, and where their values stand."""

    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    matrix: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    locate: Locate = lambda _place: (1, 1)

    def take(self, row: Row, problems: Problems) -> None:
        """Read a header row."""
        self.locate = row.locate
        defaults = row.values.get("defaults")
        if defaults is not None and not isinstance(defaults, Mapping):
            problems.add(row.locate(("defaults",)), "defaults: must be `key: value` lines")
            defaults = None
        self.defaults = dict(defaults or {})
        self.matrix = read_matrix(row.values.get("matrix"), row.locate, problems)


def read_matrix(value: Any, locate: Locate, problems: Problems) -> dict[str, list[Any]]:
    """Check the lists of values that are to be combined."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.add(locate(("matrix",)), "matrix: must be `key: [value, value]` lines")
        return {}
    axes: dict[str, list[Any]] = {}
    for key, values in value.items():
        if isinstance(values, list) and values:
            axes[str(key)] = list(values)
        else:
            problems.add(
                locate(("matrix", str(key))),
                f"matrix.{key}: must be a list of values, such as [1, 2], got {values!r:.100}",
            )
    return axes


def read_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Read a YAML, JSON, JSONL or CSV file row by row.

    Raises:
        JobFileError: there is no such file, or its kind is unknown.
    """
    from attnctl.batch.csv_rows import read_csv
    from attnctl.batch.jsonl_rows import read_jsonl
    from attnctl.batch.yaml_rows import read_yaml_rows

    readers = {
        ".yaml": read_yaml_rows,
        ".yml": read_yaml_rows,
        ".json": read_yaml_rows,
        ".jsonl": read_jsonl,
        ".csv": read_csv,
    }
    if not path.is_file():
        raise JobFileError(f"there is no job file {str(path)!r}")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise JobFileError(
            f"{str(path)!r}: the kind of a job file is told by its ending; "
            + nearest(path.suffix.lower(), readers)
        )
    return reader(path, problems)


def text_lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends; what is not UTF-8 becomes a mistake, not a stop."""
    with open(path, "rb") as file:
        for number in itertools.count(1):
            raw = file.readline(MAX_LINE + 1)
            if not raw:
                return
            if len(raw) > MAX_LINE:
                problems.add((number, 1), f"longer than {MAX_LINE:,} bytes; the rest is not read")
                return
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                problems.add((number, error.start + 1), "not UTF-8; save the file as UTF-8")
                yield number, raw.decode("utf-8", "replace")
