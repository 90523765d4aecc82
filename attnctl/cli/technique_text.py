"""Read ``-t NAME:key=value,key=value`` into a technique entry of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from attnctl.errors import RecipeError
from attnctl.yaml_files import parse_yaml

_OPENING = {"[": "]", "{": "}", "(": ")"}
_PARAMETER = re.compile(r"^\s*([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)$", re.DOTALL)
_TEXT_KEYS = frozenset({"steps", "where"})
_WHERE_TERMS = frozenset({"layers", "heads", "res", "level", "index", "path", "denoiser"})


def read_technique(text: str) -> dict[str, dict[str, Any]]:
    """Read one ``-t`` value.

    ``attend-and-excite:subjects=circle+square,steps=0-50%`` gives
    ``{"attend-and-excite": {"subjects": ["circle", "square"], "steps": "0-50%"}}``. A list is
    written ``a+b`` or ``[a, b]``; quotes keep a value as it is.

    Raises:
        RecipeError: a part has no ``key=value`` form.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    if not name:
        raise RecipeError(f"-t {text!r} has no technique name; write NAME:key=value,key=value")
    parameters: dict[str, Any] = {}
    for key, value in _join_pieces(_split(rest), text):
        if key in parameters:
            raise RecipeError(f"-t {text!r} gives {key!r} twice; keep one")
        parameters[key] = _read_value(key, value, text)
    return {name: parameters}


def _split(text: str) -> list[str]:
    """Split at commas that stand outside of quotes and brackets."""
    pieces, closing, quote = [""], "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _OPENING:
            closing = _OPENING[letter] + closing
        elif closing and letter == closing[0]:
            closing = closing[1:]
        elif letter == "," and not closing:
            pieces.append("")
            continue
        pieces[-1] += letter
    return [piece for piece in pieces if piece.strip()]


def _join_pieces(pieces: Iterable[str], text: str) -> list[tuple[str, str]]:
    """Give commas inside ``steps=3,7,11`` and ``where=layers=3,heads=0+5`` back to their value."""
    pairs: list[tuple[str, str]] = []
    for piece in pieces:
        found = _PARAMETER.match(piece)
        previous = pairs[-1][0] if pairs else ""
        is_new = found is not None and not (previous == "where" and found[1] in _WHERE_TERMS)
        if found is not None and is_new:
            pairs.append((found[1], found[2].strip()))
        elif previous in _TEXT_KEYS:
            pairs[-1] = (previous, f"{pairs[-1][1]},{piece.strip()}")
        else:
            raise RecipeError(
                f"cannot read {piece.strip()!r} in -t {text!r}; write NAME:key=value,key=value,"
                " a list as key=a+b"
            )
    return pairs


def _read_value(key: str, value: str, text: str) -> Any:
    if key in _TEXT_KEYS:
        return value.strip("\"'")
    if "+" in value and value[0] not in "\"'[{(+" and not re.fullmatch(r"[\d.]+[eE]\+\d+", value):
        return [_read_scalar(part, text) for part in value.split("+")]
    return _read_scalar(value, text)


def _read_scalar(value: str, text: str) -> Any:
    try:
        return parse_yaml(value.strip(), f"-t {text}")[0]
    except RecipeError:
        return value.strip()
