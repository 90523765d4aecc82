"""Sweeps: every combination of the values that a matrix lists."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from attnctl.batch.problems import Problems, Spot
from attnctl.batch.rows import Header, Locate, Row, read_matrix
from attnctl.yaml_files import Place

MAX_COMBINATIONS = 1_000_000


def expand(row: Row, header: Header, problems: Problems) -> Iterator[tuple[dict[str, Any], Locate]]:
    """Yield the full values of each job of a row, and what finds their places in the file.

    A job's own ``matrix:`` is combined with that of the header. A key with a dot, such as
    ``soft-pag.scale``, sets a parameter of a technique that the job has.
    """
    values = dict(row.values)
    own = read_matrix(values.pop("matrix", None), row.locate, problems)
    axes = {**header.matrix, **own}
    if not axes:
        yield {**header.defaults, **values}, _Finder(row, header, own)
        return
    for key in axes.keys() & values.keys():
        problems.add(row.locate((key,)), f"{key}: set by the job and by matrix; keep one")
    if math.prod(len(listed) for listed in axes.values()) > MAX_COMBINATIONS:
        problems.add(
            (row.line, 1), f"matrix: more than {MAX_COMBINATIONS:,} combinations; list fewer values"
        )
        return
    locate = _Finder(row, header, own, frozenset(axes))
    for chosen in itertools.product(*axes.values()):
        combined = {**header.defaults, **values}
        for key, value in zip(axes, chosen, strict=True):
            if "." in key:
                _set_parameter(combined, key, value, locate, problems)
            else:
                combined[key] = value
        yield combined, locate


class _Finder:
    """Finds a value where it was written: in the job, its matrix, the header's, or the defaults."""

    def __init__(
        self, row: Row, header: Header, own: Mapping[str, Any], swept: frozenset[str] = frozenset()
    ) -> None:
        self._row, self._header, self._own, self._swept = row, header, own, swept

    def __call__(self, place: Place) -> Spot:
        key = place[0] if place else None
        if key in self._own:
            return self._row.locate(("matrix", str(key)))
        if key in self._swept:
            return self._header.locate(("matrix", str(key)))
        if key in self._header.defaults and key not in self._row.values:
            return self._header.locate(("defaults", *place))
        return self._row.locate(place)


def _set_parameter(
    values: dict[str, Any], key: str, value: Any, locate: Locate, problems: Problems
) -> None:
    """Set one parameter of a technique among ``values["techniques"]``, on copies."""
    name, _, parameter = key.partition(".")
    changed: list[Any] = []
    is_found = False
    techniques = values.get("techniques")
    for entry in techniques if isinstance(techniques, list) else []:
        if not is_found and _name_of(entry) == name:
            is_found = True
            entry = {name: {**_parameters_of(entry, name), parameter: value}}
        changed.append(entry)
    if is_found:
        values["techniques"] = changed
    else:
        problems.add(locate((key,)), f"matrix.{key}: no technique {name!r} in this job")


def _name_of(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return entry["name"] if "name" in entry else next(iter(entry), None)
    return entry


def _parameters_of(entry: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        return {}
    found = entry.get("parameters") if "name" in entry else entry.get(name)
    return found if isinstance(found, Mapping) else {}
