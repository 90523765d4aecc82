"""A list of finished pictures on disk that survives a killed process."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.canonical import canonical_json
from attnctl.errors import SettingError
from attnctl.files import write_text

FILE_NAME = "images.jsonl"


class Journal:
    """One JSON line a finished picture, after a first line that says which run it is.

    Args:
        folder: Where the journal lies.
        run: Plain values that decide about every picture.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self._path = folder / FILE_NAME
        self._head = {"run": key_of(run)}
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}

    def open(self, *, resume: bool) -> None:
        """Start the journal, or go on with it.

        A last line that was cut off by a kill is dropped.

        Raises:
            SettingError: there is a journal and ``resume`` is not set, or it is another run's.
        """
        if not self._path.exists():
            write_text(self._path, json_line(self._head))
            return
        folder = str(self._path.parent)
        if not resume:
            raise SettingError(
                f"{folder!r} holds a run already; go on with it with --resume, or give another"
                " folder with --out"
            )
        head, *entries = whole_lines(self._path) or [{}]
        if head != self._head:
            raise SettingError(
                f"{folder!r} holds a run with other settings, another model or other versions;"
                " give another folder with --out"
            )
        self._entries = {(str(e["condition"]), str(e["id"])): e for e in entries}
        self._rewrite()

    def get(self, condition: str, image: str) -> dict[str, Any] | None:
        """What is known of a picture, ``None`` if it is not finished."""
        return self._entries.get((condition, image))

    def forget(self, condition: str, images: Sequence[str]) -> None:
        """Take pictures off the list, so that they are made again."""
        known = [self._entries.pop((condition, image), None) for image in images]
        if any(entry is not None for entry in known):
            self._rewrite()

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Note finished pictures; they are on the disk when this returns."""
        text = "".join(map(json_line, entries))
        with open(self._path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self._entries |= {(str(e["condition"]), str(e["id"])): dict(e) for e in entries}

    def _rewrite(self) -> None:
        write_text(self._path, "".join(map(json_line, [self._head, *self._entries.values()])))


def key_of(values: Mapping[str, Any]) -> str:
    """Name exactly these plain values: 64 hexadecimal digits."""
    text = canonical_json(values, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def json_line(value: Mapping[str, Any]) -> str:
    """Write plain values as one line of a journal."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Read lines up to the first one that is not whole."""
    lines: list[dict[str, Any]] = []
    for raw in path.read_bytes().split(b"\n")[:-1]:
        try:
            value = json.loads(raw)
        except ValueError:
            break
        if not isinstance(value, dict):
            break
        lines.append(value)
    return lines
