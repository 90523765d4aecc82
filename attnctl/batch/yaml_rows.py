"""Rows of a YAML or JSON file, read as a stream, so that every mistake has its line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from attnctl.batch.problems import Problems, Spot
from attnctl.batch.rows import HEADER_KEYS, Row
from attnctl.errors import nearest
from attnctl.yaml_files import MAX_DEPTH, Place, read_plain

MAX_BYTES = 32_000_000
"""Largest YAML file that is read; JSONL and CSV files may have any size."""

_Marks = dict[Place, Spot]
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = frozenset({"tag:yaml.org,2002:str", "!"})


_UNREADABLE: Any = object()
"""Stands for a value whose mistake is noted."""


class _StopError(Exception):
    """The rest of the file cannot be read; the mistake is noted."""


def read_yaml_rows(path: Path, problems: Problems) -> Iterator[Row]:
    """Read a list of jobs, or ``defaults:``, ``matrix:`` and ``jobs:``."""
    raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    if raw is None:
        problems.add((1, 1), f"more than {MAX_BYTES:,} bytes; write so many jobs as JSONL or CSV")
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        problems.add((line, 1), "not UTF-8; save the file as UTF-8")
        return
    try:
        yield from _Walk(yaml.parse(text, Loader=_PARSER), problems).rows()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        spot = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        problems.add(spot, f"not YAML: {what}; the rest is not read")
    except _StopError:
        return


class _Walk:
    """Turns the events of a parser into rows."""

    def __init__(self, events: Iterator[Event], problems: Problems) -> None:
        self._events = events
        self._problems = problems

    def rows(self) -> Iterator[Row]:
        next(self._events)  # the start of the stream
        if isinstance(next(self._events), StreamEndEvent):
            return
        first = next(self._events)
        if isinstance(first, SequenceStartEvent):
            yield from self._items()
        elif isinstance(first, MappingStartEvent):
            yield from self._sections(first)
        elif not (isinstance(first, ScalarEvent) and first.value == ""):
            self._problems.add(_spot(first), "a job file is a list of jobs, or has `jobs:`")
            return
        next(self._events)  # the end of the document
        after = next(self._events)
        if not isinstance(after, StreamEndEvent):
            self._problems.add(_spot(after), "a second document; keep everything in one")

    def _items(self) -> Iterator[Row]:
        while not isinstance(event := next(self._events), SequenceEndEvent):
            marks: _Marks = {}
            values = self._value(event, (), marks)
            if isinstance(values, dict):
                yield Row(values, _spot(event)[0], partial(_locate, marks))
            else:
                self._problems.add(_spot(event), "a job is `key: value` lines")

    def _sections(self, start: Event) -> Iterator[Row]:
        """Read ``defaults:`` and ``matrix:`` as one row, then the jobs."""
        header: dict[str, Any] = {}
        marks: _Marks = {(): _spot(start)}
        has_jobs = False
        while not isinstance(event := next(self._events), MappingEndEvent):
            key, value = self._key(event), next(self._events)
            marks.setdefault((key,), _spot(event))
            if key in header or (key == "jobs" and has_jobs):
                self._problems.add(_spot(event), f"the key {key!r} is there twice; keep one")
            if key == "jobs":
                if header and not has_jobs:
                    yield Row(header, 1, partial(_locate, marks))
                has_jobs = True
                yield from self._jobs(value)
                continue
            header[key] = self._value(value, (key,), marks)
            if key not in HEADER_KEYS:
                hint = nearest(key, [*HEADER_KEYS, "jobs"])
                self._problems.add(_spot(event), f"unknown key {key!r} beside `jobs:`; {hint}")
                del header[key]
            elif has_jobs:
                self._problems.add(_spot(event), f"`{key}:` must stand above `jobs:`")
        if not has_jobs and header:
            yield Row(header, 1, partial(_locate, marks))
            yield Row({}, _spot(start)[0], partial(_locate, {(): _spot(start)}))

    def _jobs(self, event: Event) -> Iterator[Row]:
        if isinstance(event, SequenceStartEvent):
            yield from self._items()
            return
        self._value(event, (), {})
        self._problems.add(_spot(event), "jobs: must be a list of jobs, each starting with `- `")

    def _value(self, event: Event, place: Place, marks: _Marks) -> Any:
        marks.setdefault(place, _spot(event))
        if isinstance(event, ScalarEvent):
            return self._scalar(event)
        if isinstance(event, AliasEvent):
            self._problems.add(_spot(event), "YAML aliases (*name) are not allowed here")
            return _UNREADABLE
        if len(place) > MAX_DEPTH:
            self._problems.add(_spot(event), f"nested deeper than {MAX_DEPTH} levels")
            raise _StopError
        self._is_plain(event)
        if isinstance(event, SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(inner := next(self._events), SequenceEndEvent):
                items.append(self._value(inner, (*place, len(items)), marks))
            return [item for item in items if item is not _UNREADABLE]
        values: dict[str, Any] = {}
        while not isinstance(inner := next(self._events), MappingEndEvent):
            key = self._key(inner)
            if key in values:
                self._problems.add(_spot(inner), f"the key {key!r} is there twice; keep one")
            marks[*place, key] = _spot(inner)
            value = self._value(next(self._events), (*place, key), marks)
            if value is not _UNREADABLE:
                values[key] = value
        return values

    def _key(self, event: Event) -> Any:
        if isinstance(event, ScalarEvent):
            return self._scalar(event) if event.implicit[0] else event.value
        self._problems.add(_spot(event), "a key must be a word or a number")
        raise _StopError

    def _scalar(self, event: ScalarEvent) -> Any:
        if not self._is_plain(event):
            return _UNREADABLE
        if event.tag is not None or not event.implicit[0]:
            return event.value
        try:
            return read_plain(event.value)
        except ValueError:
            self._problems.add(_spot(event), "a number with too many digits")
            return _UNREADABLE

    def _is_plain(self, event: Any) -> bool:
        if event.tag is None or event.tag in _TAGS:
            return True
        self._problems.add(_spot(event), f"the tag {event.tag!r} is not allowed; use plain values")
        return False


def _spot(event: Event) -> Spot:
    mark = event.start_mark
    return mark.line + 1, mark.column + 1


def _locate(marks: _Marks, place: Place) -> Spot:
    """Spot of a value, or of the nearest thing around it."""
    for length in range(len(place), -1, -1):
        if place[:length] in marks:
            return marks[place[:length]]
    return (1, 1)
