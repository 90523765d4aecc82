"""What a person sees while pictures are made: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

WINDOW = 400
"""Latest steps that tell how long the rest takes."""


class Progress:
    """Count denoising steps of all pictures; everything is written to stderr.

    Args:
        total: Steps of all pictures together.
        quiet: Write nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total = total
        self._done = 0
        # Pictures that a resumed run finds whole cost no time; they soon leave this window.
        self._recent = deque([(time.monotonic(), 0)], maxlen=WINDOW)
        self._quiet = quiet
        self._bar: Any = _bar() if not quiet and sys.stderr.isatty() else None
        self._task: Any = self._bar.add_task("steps", total=total) if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, pictures: int) -> None:
        """Note that ``pictures`` pictures have moved on by one step."""
        self._done += pictures
        self._recent.append((time.monotonic(), self._done))
        if self._bar:
            self._bar.update(self._task, completed=min(self._done, self._total))

    def say(self, text: str) -> None:
        """Write a line above the bar, or a plain line with the time that is left."""
        if self._quiet:
            return
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(f"{text}{self._time_left()}", file=sys.stderr, flush=True)  # noqa: T201

    def _time_left(self) -> str:
        (started, before), (now, done) = self._recent[0], self._recent[-1]
        if not before < done < self._total:
            return ""
        seconds = (now - started) * (self._total - done) / (done - before)
        return f" ({100 * done // self._total}%, about {seconds:.0f} s left)"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
