"""Rows of a JSONL file: one JSON object a line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from attnctl.batch.problems import Problems, Spot
from attnctl.batch.rows import Row, text_lines
from attnctl.yaml_files import Place


class _TwiceError(ValueError):
    """A key is there twice in one object."""


def read_jsonl(path: Path, problems: Problems) -> Iterator[Row]:
    """Read one object a line; empty lines are skipped."""
    for number, line in text_lines(path, problems):
        if not line.strip():
            continue
        values = _parse(line, number, problems)
        if values is not None:
            yield Row(values, number, partial(_locate, number, line))


def _parse(line: str, number: int, problems: Problems) -> dict[str, Any] | None:
    try:
        values = json.loads(line, object_pairs_hook=_without_repeats, parse_constant=_refuse)
    except _TwiceError as error:
        key = str(error)
        spots = [found.start() + 1 for found in _key_pattern(key).finditer(line)]
        problems.add((number, spots[-1] if spots else 1), f"the key {key!r} is there twice")
        return None
    except json.JSONDecodeError as error:
        problems.add((number, error.colno), f"not JSON: {error.msg}; each line is one object")
        return None
    except (ValueError, RecursionError) as error:
        problems.add((number, 1), f"not JSON: {str(error) or 'nested too deeply'}")
        return None
    if not isinstance(values, dict):
        problems.add((number, 1), 'each line is an object such as {"prompt": "a red circle"}')
        return None
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return values


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that can be used")


def _locate(number: int, line: str, place: Place) -> Spot:
    """Find the last of the named keys in the line."""
    at = 0
    for key in place:
        found = _key_pattern(str(key)).search(line, at) if isinstance(key, str) else None
        at = found.start() if found else at
    return number, at + 1


def _key_pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:")
