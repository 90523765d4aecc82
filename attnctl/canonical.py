"""One JSON text for equal plain values, whatever the order of their keys."""

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(values: Mapping[str, Any], **options: Any) -> str:
    """Write plain values as JSON with sorted keys; in a mapping that has both, numbers come first.

    Args:
        values: Plain values, such as those of a recipe: ``thresholds: {0: 0.05, 20%: 0.5}``.
        options: Arguments of ``json.dumps``.

    Raises:
        TypeError: a value cannot be written as JSON.
    """
    try:
        return json.dumps(values, sort_keys=True, **options)
    except TypeError:  # keys of several types, which json does not sort
        return json.dumps(_sorted(values), **options)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=_rank)}  # pyright: ignore
    if isinstance(value, list):
        return [_sorted(item) for item in value]  # pyright: ignore
    return value


def _rank(key: Any) -> tuple[bool, float, str]:
    is_number = isinstance(key, int | float)
    return not is_number, float(key) if is_number else 0.0, str(key)
