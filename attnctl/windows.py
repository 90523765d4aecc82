"""Windows of denoising steps and ramps over them, the parts of a schedule."""

import math
from dataclasses import dataclass
from typing import Literal

from attnctl.errors import ScheduleError

Shape = Literal["linear", "cosine"]
Bound = int | float


def is_whole(value: object) -> bool:
    """Whether a value is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def zero_like(bound: Bound) -> Bound:
    """Zero in the unit of a bound: a step index or a fraction."""
    return 0 if isinstance(bound, int) else 0.0


def _percent(bound: Bound) -> str:
    return f"{100 * bound:.10g}"


def _to_index(bound: Bound, total: int) -> int:
    """First step index whose fraction ``index / total`` reaches ``bound``."""
    if isinstance(bound, int):
        return bound
    return math.ceil(bound * total - 1e-9)


def _check_bound(bound: object, name: str) -> None:
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise ScheduleError(
            f"{name}={bound!r} is no step: use an int (step index) or a float (fraction of the run)"
        )
    if isinstance(bound, float) and not 0.0 <= bound <= 1.0:
        raise ScheduleError(
            f"{name}={bound!r} is outside [0, 1]; a float is a fraction of the run, an int a step"
        )
    if bound < 0:
        raise ScheduleError(f"{name}={bound!r} is negative; step indices start at 0")


@dataclass(frozen=True, slots=True)
class Window:
    """Steps from ``start`` (included) to ``stop`` (excluded); ``stop=None`` means the end.

    Both bounds have one unit: ints are step indices, floats fractions of the run in [0, 1].
    """

    start: Bound = 0.0
    stop: Bound | None = None

    def __post_init__(self) -> None:
        _check_bound(self.start, "start")
        if self.stop is None:
            return
        _check_bound(self.stop, "stop")
        if isinstance(self.start, int) != isinstance(self.stop, int) and self.start != 0:
            raise ScheduleError(
                f"a window mixes a step index and a fraction: {self.start!r} to {self.stop!r}; "
                "use two ints (steps) or two floats (fractions of the run)"
            )
        if self.start > self.stop:
            raise ScheduleError(
                f"a window starts after it stops: {self.start!r} to {self.stop!r}; "
                "start must not exceed stop"
            )

    @property
    def in_fractions(self) -> bool:
        """Whether the bounds are fractions of the run."""
        return isinstance(self.start if self.stop is None else self.stop, float)

    def indices(self, total: int) -> range:
        """Step indices of this window in a run of ``total`` steps."""
        stop = total if self.stop is None else _to_index(self.stop, total)
        return range(min(_to_index(self.start, total), total), min(stop, total))

    def __str__(self) -> str:
        if self.in_fractions:
            stop = "" if self.stop is None else f"{_percent(self.stop)}%"
            return (
                f"{_percent(self.start)}%-{stop}" if not stop else f"{_percent(self.start)}-{stop}"
            )
        return f"{int(self.start)}-{'' if self.stop is None else self.stop}"


@dataclass(frozen=True, slots=True)
class Ramp:
    """Strength that goes from ``first`` to ``last`` over the steps of a window."""

    first: float = 1.0
    last: float = 1.0
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        for value in (self.first, self.last):
            if isinstance(value, bool) or not math.isfinite(value):
                raise ScheduleError(f"a ramp needs two finite numbers, got {value!r}")
        if self.shape not in ("linear", "cosine"):
            raise ScheduleError(f"unknown ramp shape {self.shape!r}; allowed: 'linear', 'cosine'")

    def at(self, position: float) -> float:
        """Strength at ``position`` in [0, 1]."""
        if self.shape == "cosine":
            position = 0.5 - 0.5 * math.cos(math.pi * position)
        return self.first + (self.last - self.first) * position
