"""Time things side by side, turn by turn, so that a busy machine is busy for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from attnctl.bench.statistics import median, quartiles


@dataclass(slots=True)
class Times:
    """Times of one side, one entry a round, in seconds.

    Attributes:
        wall: By the clock on the wall.
        cpu: Of all threads of this process; leaves out what other processes took.
    """

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])


def take_turns(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Times]:
    """Run all sides in turn, A B B A, after one round that does not count.

    The order turns round each time, so that what a side leaves in the caches favours no other.

    Args:
        sides: What to run, by name.
        repeats: Rounds, at least 1.
        say: Told about every finished round.
    """
    times = {name: Times() for name in sides}
    for number in range(-1, repeats):
        order = list(sides.items())
        for name, run in order if number % 2 else reversed(order):
            _synchronise()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            _synchronise()
            if number >= 0:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
        shown = {name: f"{side.wall[-1]:.2f} s" for name, side in times.items() if side.wall}
        say(f"round {number + 1} of {repeats} {shown or 'warm-up'}")
    return times


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median of the round-by-round ratios, with their quartiles."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, high = quartiles(ratios)
    return {"median": median(ratios), "low": low, "high": high}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
