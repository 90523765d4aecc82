"""Checks of a technique's settings: each gives the value in one form, or says what is allowed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attnctl.errors import SettingError
from attnctl.where import Where
from attnctl.windows import is_whole


def check_number(
    technique: str,
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> None:
    """Refuse a setting that is no finite number in the allowed range.

    Raises:
        SettingError: naming the technique, the setting, the value and the range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and at_least <= value <= at_most:
        return
    low = "" if at_least == -math.inf else f" from {at_least:g}"
    high = "" if at_most == math.inf else f" to {at_most:g}"
    raise SettingError(f"{technique}: {name}={value!r} must be a finite number{low}{high}")


def check_whole(technique: str, name: str, value: Any, *, at_least: int) -> None:
    """Refuse a setting that is no whole number from ``at_least``.

    Raises:
        SettingError: naming the technique, the setting and the value.
    """
    if not is_whole(value) or value < at_least:
        raise SettingError(f"{technique}: {name}={value!r} must be a whole number from {at_least}")


def refuse_selector(technique: str, where: Where, doing: str) -> None:
    """Refuse a choice of attention sites where blocks are chosen instead.

    Args:
        technique: Its name.
        where: Its selector; ``all`` is no choice.
        doing: What the technique does, such as ``skips blocks``.

    Raises:
        SettingError: naming the parameter that chooses.
    """
    if where.text != "all":
        raise SettingError(
            f"{technique}: where={str(where)!r} selects attention sites, but this technique "
            f"{doing}; choose them with blocks="
        )


def step_values(technique: str, name: str, value: Any) -> dict[int | float, float]:
    """Read a mapping from steps (ints) or fractions of the run (floats, ``"40%"``) to [0, 1].

    Raises:
        SettingError: a key is no step, or a value lies outside [0, 1].
    """
    pairs: dict[int | float, float] = {}
    try:
        for key, number in dict(value).items():
            pairs[_step(key)] = float(number)
    except (TypeError, ValueError):
        pairs = {-1: -1.0}
    for when, number in pairs.items():
        is_step = when >= 0 and (isinstance(when, int) or when <= 1.0)
        if not is_step or not 0.0 <= number <= 1.0:
            raise SettingError(
                f"{technique}: {name}={value!r} must map steps (or fractions of the run, such as "
                "0.4 or '40%') to values in [0, 1], such as {0: 0.05, 10: 0.5}"
            )
    return pairs


def steps_or_fraction(technique: str, name: str, value: Any) -> int | float:
    """Read a number of steps (an int), or a fraction of the run (a float, or ``"30%"``).

    Raises:
        SettingError: it is neither.
    """
    try:
        number = _step(value)
    except (TypeError, ValueError):
        number = -1
    is_exact = isinstance(number, float) or isinstance(value, int | str)
    if is_exact and number >= 0 and (isinstance(number, int) or number <= 1.0):
        return number
    raise SettingError(
        f"{technique}: {name}={value!r} must be a whole number of steps from 0, or a fraction of "
        "the run such as 0.3 or '30%'"
    )


def step_of(when: int | float, total: int | None) -> int:
    """Step index of a whole number of steps, or of a fraction of the run."""
    return when if isinstance(when, int) else round(when * (total or 1))


def value_at(values: Mapping[int | float, float], index: int, total: int | None) -> float | None:
    """Value that :func:`step_values` has for a step, or ``None``."""
    return next((value for when, value in values.items() if step_of(when, total) == index), None)


def grid_or_none(technique: str, name: str, value: Any) -> tuple[int, int] | None:
    """Read a side in cells, ``(height, width)`` or ``"16x24"``.

    Raises:
        SettingError: it is none of these.
    """
    if value is None:
        return None
    pair: Any = value
    if isinstance(value, str):
        pair = [int(part) if part.isdigit() else 0 for part in value.split("x")]
    elif isinstance(value, int):
        pair = (value, value)
    if isinstance(pair, Sequence) and len(pair) == 2 and all(_is_side(p) for p in pair):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return (int(pair[0]), int(pair[1]))  # pyright: ignore[reportUnknownArgumentType]
    raise SettingError(f"{technique}: {name}={value!r} must be a side in cells or (height, width)")


def two_numbers(technique: str, name: str, value: Any) -> tuple[float, float]:
    """Read two numbers from 0.

    Raises:
        SettingError: there are not two of them, or one is negative or not finite.
    """
    if not isinstance(value, Sequence) or len(value) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise SettingError(f"{technique}: {name}={value!r} must be two numbers, such as (1.0, 0.5)")
    for one in (value[0], value[1]):  # pyright: ignore[reportUnknownVariableType]
        check_number(technique, name, one, at_least=0)
    return (float(value[0]), float(value[1]))  # pyright: ignore[reportUnknownArgumentType]


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _step(key: Any) -> int | float:
    if isinstance(key, bool):
        raise ValueError(key)
    if isinstance(key, str):
        text = key.strip()
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if "." in text else int(text)
    return key if isinstance(key, float) else int(key)
