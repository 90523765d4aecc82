"""When a technique acts: windows of denoising steps, with an optional ramp.

A float counts in fractions of the run, an int in step indices. Start is included, stop is excluded.
"""

import re
from dataclasses import dataclass

from attnctl.errors import ScheduleError
from attnctl.windows import Bound, Ramp, Shape, Window, is_whole, zero_like


@dataclass(frozen=True, slots=True)
class Schedule:
    """How strongly a technique acts at each step: 0 outside its windows, its ramp inside."""

    windows: tuple[Window, ...] = (Window(),)
    chosen: tuple[int, ...] | None = None
    period: int | None = None
    ramp: Ramp | None = None

    @staticmethod
    def always() -> "Schedule":
        """Every step, at full strength."""
        return Schedule()

    @staticmethod
    def parse(text: "str | Schedule") -> "Schedule":
        """Read ``"0-50%"``, ``"0-25"``, ``"50%-"``, ``"3,7,11"``, ``"every 5"``, ``"always"``.

        A ramp may follow: ``"0-50% ramp 1..0 cosine"``.

        Raises:
            ScheduleError: the text is none of these.
        """
        if isinstance(text, Schedule):
            return text
        return _parse(text)

    def active_steps(self, total: int) -> tuple[int, ...]:
        """Step indices at which this schedule acts in a run of ``total`` steps."""
        return tuple(i for i in range(total) if self.strength(i, total) != 0.0)

    def strength(self, index: int, total: int | None) -> float:
        """Strength at step ``index`` of ``total`` (``None``: a bare denoiser, length unknown).

        Raises:
            ScheduleError: fractions are asked of a run whose length is unknown.
        """
        if self.chosen is not None:
            return 1.0 if index in self.chosen else 0.0
        if self.period is not None and index % self.period:
            return 0.0
        if total is None:
            return self._strength_without_length(index)
        for window in self.windows:
            steps = window.indices(total)
            if index in steps:
                if self.ramp is None:
                    return 1.0
                last = len(steps) - 1
                return self.ramp.at((index - steps.start) / last if last else 0.0)
        return 0.0

    def _strength_without_length(self, index: int) -> float:
        if self.ramp is not None or self.in_fractions:
            raise ScheduleError(
                f"steps={self} counts in fractions of a run, but a bare denoiser has no run; "
                "use step indices, or attach to the pipeline"
            )
        return float(
            any(w.start <= index and (w.stop is None or index < w.stop) for w in self.windows)
        )

    @property
    def in_fractions(self) -> bool | None:
        """Unit of the windows: True fractions, False indices, None if they are the whole run."""
        if self.chosen is not None:
            return False
        bounded = [w for w in self.windows if w.start != 0 or w.stop is not None]
        return any(w.in_fractions for w in bounded) if bounded else None

    def surely_overlaps(self, other: "Schedule") -> bool:
        """Whether both act at a common step in every long enough run."""
        mine, theirs = self.in_fractions, other.in_fractions
        if mine is not None and theirs is not None and mine != theirs:
            return False
        total = 1000
        return bool(set(self.active_steps(total)) & set(other.active_steps(total)))

    def __str__(self) -> str:
        if self.chosen is not None:
            return ",".join(map(str, self.chosen))
        parts: list[str] = []
        if self.windows != (Window(),):
            parts.append("+".join(map(str, self.windows)))
        if self.period is not None:
            parts.append(f"every {self.period}")
        if self.ramp is not None:
            parts.append(f"ramp {self.ramp.first:g}..{self.ramp.last:g} {self.ramp.shape}")
        return " ".join(parts) or "always"

    def __repr__(self) -> str:
        return f"Schedule({str(self)!r})"


def until(stop: Bound) -> Schedule:
    """From the first step until ``stop``; ``until(1)`` is one step, ``until(1.0)`` all."""
    return Schedule((Window(zero_like(stop), stop),))


def after(start: Bound) -> Schedule:
    """From ``start`` to the end of the run."""
    return Schedule((Window(start),))


def between(start: Bound, stop: Bound) -> Schedule:
    """From ``start`` (included) to ``stop`` (excluded), in ints (steps) or floats (fractions)."""
    return Schedule((Window(start, stop),))


def steps(*indices: int) -> Schedule:
    """Just these step indices."""
    for index in indices:
        if not is_whole(index) or index < 0:
            raise ScheduleError(f"steps(...) takes step indices (ints from 0), got {index!r}")
    return Schedule(chosen=tuple(sorted(set(indices))))


def every(period: int, *, during: Schedule | str = "always") -> Schedule:
    """Steps 0, ``period``, 2 ``period``, ... inside the windows of ``during``."""
    if not is_whole(period) or period < 1:
        raise ScheduleError(f"every(...) takes a whole number of steps from 1, got {period!r}")
    inside = Schedule.parse(during)
    return Schedule(inside.windows, inside.chosen, period, inside.ramp)


def ramp(
    first: float, last: float, *, shape: Shape = "linear", during: Schedule | str = "always"
) -> Schedule:
    """Strength from ``first`` to ``last`` over the window of ``during``."""
    inside = Schedule.parse(during)
    return Schedule(inside.windows, inside.chosen, inside.period, Ramp(first, last, shape))


_NUMBER = r"\d+(?:\.\d+)?%?"
_WINDOW = re.compile(rf"^({_NUMBER})?\s*-\s*({_NUMBER})?$")
_RAMP = re.compile(r"^(.*?)\s*ramp\s+([-+.\deE]+)\.\.([-+.\deE]+)(?:\s+(\w+))?$")
_EVERY = re.compile(r"^(.*?)\s*every\s+(\d+)$")


def _parse(text: str) -> Schedule:
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ScheduleError(
            f"steps={text!r} is no schedule; give a text such as '0-50%', '0-25', '3,7,11' or "
            "'every 5', or use attnctl.until, between, after, steps, every, ramp"
        )
    line = text.strip()
    if found := _RAMP.match(line):
        shape = found[4] or "linear"
        try:
            first, last = float(found[2]), float(found[3])
        except ValueError:
            raise _unreadable(text) from None
        return ramp(first, last, shape=shape, during=found[1] or "always")  # pyright: ignore[reportArgumentType]
    if found := _EVERY.match(line):
        return every(int(found[2]), during=found[1] or "always")
    if line in ("", "always", "all"):
        return Schedule()
    if re.fullmatch(r"\d+(\s*,\s*\d+)*", line):
        return steps(*(int(part) for part in line.split(",")))
    return Schedule(tuple(_parse_window(part.strip(), text) for part in line.split("+")))


def _parse_window(part: str, text: str) -> Window:
    found = _WINDOW.match(part)
    if not found or (found[1] is None and found[2] is None):
        raise _unreadable(text)
    as_percent = "%" in part
    start = _parse_bound(found[1], as_percent)
    stop = _parse_bound(found[2], as_percent)
    return Window(start if start is not None else (0.0 if as_percent else 0), stop)


def _parse_bound(text: str | None, as_percent: bool) -> Bound | None:
    if text is None:
        return None
    if as_percent:
        return float(text.rstrip("%")) / 100
    if "." in text:
        return float(text)
    return int(text)


def _unreadable(text: str) -> ScheduleError:
    return ScheduleError(
        f"cannot read steps={text!r}; allowed: '0-50%', '0-25', '50%-', '3,7,11', 'every 5', "
        "'always', with an optional 'ramp 1..0 cosine' behind"
    )
