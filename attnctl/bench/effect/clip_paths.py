"""Where an object is in each frame of a clip, how far paths are apart, and how frames change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from attnctl.shapes.verifier import look

Place = tuple[float, float]
"""Horizontal and vertical place of the middle of an object's box, pixels."""

Path = Sequence[Place | None]
"""A place for each frame; ``None`` where the object is not seen."""


def path_of_colour(frames: NDArray[np.float32], colour: str) -> list[Place | None]:
    """Follow the largest object of a colour, whatever its shape.

    Args:
        frames: ``(F, H, W, 3)`` in [0, 1].
        colour: Name in the palette.
    """
    seen = [[one.box for one in look(frame) if one.colour == colour] for frame in frames]
    return [_middle(boxes[0]) if boxes else None for boxes in seen]  # the largest one is first


def path_of_object(objects: Tensor, slot: int) -> list[Place | None]:
    """Follow an object of a rendered clip by the pixels that show it.

    Args:
        objects: Topmost object of each pixel, ``(F, H, W)``.
        slot: Its number.
    """
    path: list[Place | None] = []
    for frame in objects == slot:
        rows, columns = frame.any(1).nonzero().flatten(), frame.any(0).nonzero().flatten()
        if not len(rows):
            path.append(None)
            continue
        box = (*(float(side[0]) for side in (columns, rows)),
               *(float(side[-1]) + 1 for side in (columns, rows)))  # fmt: skip
        path.append(_middle(box))
    return path


def steps_apart(one: Path, other: Path) -> list[float | None]:
    """Pixels between two paths in each frame; ``None`` where one of them is not seen."""
    return [
        None if a is None or b is None else math.dist(a, b) for a, b in zip(one, other, strict=True)
    ]


def largest_step(frames: NDArray[Any]) -> float:
    """Largest mean absolute difference of neighbours among frames ``(F, H, W, 3)``, 0 of one."""
    steps = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean((1, 2, 3))
    return float(steps.max(initial=0.0))


def missed_px(size: tuple[int, int]) -> float:
    """What a frame without the object counts as: half the diagonal of a picture of this size."""
    return math.hypot(*size) / 2


def _middle(box: tuple[float, ...]) -> Place:
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2
