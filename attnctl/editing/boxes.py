"""Boxes in parts of a picture, as users give them."""

import math
from typing import Any

from attnctl.ops.bounded_attention import Box


def has_four_numbers(value: Any) -> bool:
    """Whether a value is a list or tuple of four finite numbers."""
    if not isinstance(value, list | tuple) or len(value) != 4:  # pyright: ignore[reportUnknownArgumentType]
        return False
    numbers = [one for one in value if isinstance(one, int | float) and not isinstance(one, bool)]
    return len(numbers) == 4 and all(map(math.isfinite, numbers))


def as_box(value: Any) -> Box | None:
    """A box ``(x0, y0, x1, y1)`` with ``0 <= x0 < x1 <= 1``, likewise y; ``None`` if it is none."""
    if not has_four_numbers(value):
        return None
    x0, y0, x1, y1 = (float(number) for number in value)
    return (x0, y0, x1, y1) if 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 else None
