"""Strict YAML: plain values, no aliases, no duplicate keys, and the line of each value."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from attnctl.errors import RecipeError

MAX_BYTES = 4_000_000
"""Largest file that is read."""

MAX_DEPTH = 20
"""Deepest nesting that is read."""

Place = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""

# The core schema of YAML 1.2: `no` is a word, `1e-3` a float, `1:30` and a date are texts.
_PLAIN_VALUES = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  the base class declares it so


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        return True


def _read_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,  # `010` is ten, not eight
    "float": _read_float,
}


def _construct_int(loader: Any, node: ScalarNode) -> int:
    return _READERS["int"](loader.construct_scalar(node))


def _construct_float(loader: Any, node: ScalarNode) -> float:
    return _read_float(loader.construct_scalar(node))


for _name, _pattern, _first in _PLAIN_VALUES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_yaml(path: str | Path) -> tuple[Any, dict[Place, int]]:
    """Read a YAML or JSON file.

    Returns:
        The plain values, and the line (from 1) of each key and list item by its place.

    Raises:
        RecipeError: the file is missing, too large, not UTF-8, or not strict YAML; the message
            starts with ``file:line:``.
    """
    name = str(path)
    if not Path(path).is_file():
        raise RecipeError(f"there is no file {name!r}")
    raw = Path(path).read_bytes()
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{name}: {len(raw):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError(f"{name}:{line}: not UTF-8; save the file as UTF-8") from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str = "text") -> tuple[Any, dict[Place, int]]:
    """Read YAML from a text; see :func:`read_yaml`."""
    loader = _Loader(text)
    try:
        _refuse_aliases(text, name)
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        if node is None:
            return None, lines
        _check(node, (), lines, name)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{mark.line + 1}:{mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{name}:{line} {problem}") from None
    finally:
        loader.dispose()


def write_yaml(value: Any) -> str:
    """Write plain values so that :func:`parse_yaml` reads the same ones; one line a key."""
    if isinstance(value, dict) and value:
        return "".join(_dump({key: item}, item) for key, item in value.items())
    return _dump(value, value)


def _dump(value: Any, inner: Any) -> str:
    is_short = isinstance(inner, dict | list)  # then what lies inside may share a line
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None if is_short else False,
    )


def read_plain(text: str) -> Any:
    """Read a scalar that stands without quotes and without a tag."""
    for name, pattern, first in _PLAIN_VALUES:
        if text[:1] in first and pattern.match(text):
            return _READERS[name](text)
    return text


def _refuse_aliases(text: str, name: str) -> None:
    """Aliases allow a small file to stand for gigabytes; recipes do not need them."""
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1
            raise RecipeError(f"{name}:{line}: YAML aliases (*{event.anchor}) are not allowed here")


def _check(node: Node, place: Place, lines: dict[Place, int], name: str) -> None:
    """Note the line of every value; refuse duplicate keys, odd keys, objects and deep nesting."""
    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    if len(place) > MAX_DEPTH:
        raise RecipeError(f"{name}:{line}: nested deeper than {MAX_DEPTH} levels")
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise RecipeError(f"{name}:{line}: the tag {node.tag!r} is not allowed; use plain values")
    if isinstance(node, SequenceNode):
        for number, item in enumerate(node.value):
            _check(item, (*place, number), lines, name)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            at = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise RecipeError(f"{name}:{at}: a key must be a word or a number")
            if (*place, key.value) in lines:
                raise RecipeError(
                    f"{name}:{at}: the key {key.value!r} is there twice (first on line "
                    f"{lines[(*place, key.value)]}); keep one"
                )
            lines[(*place, key.value)] = at
            _check(value, (*place, key.value), lines, name)
