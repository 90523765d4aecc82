"""What a person sees while pictures are made: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self


class Progress:
    """Count denoising steps of all pictures; everything is written to stderr.

    Args:
        total: Steps of all pictures together.
        quiet: Write nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._total = total
        self._done = 0
        self._started = time.monotonic()
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
        if not 0 < self._done < self._total:
            return ""
        seconds = (time.monotonic() - self._started) * (self._total / self._done - 1)
        return f" ({100 * self._done // self._total}%, about {seconds:.0f} s left)"


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
