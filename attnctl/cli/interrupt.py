"""Ctrl-C: once finishes the denoising step and stops, twice stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """Holds Ctrl-C back until :meth:`check`, so that it is never lost in the middle of a step."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._is_wanted = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Stop here if somebody has pressed Ctrl-C.

        Raises:
            KeyboardInterrupt: somebody has.
        """
        if self._is_wanted:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_wanted:
            raise KeyboardInterrupt
        self._is_wanted = True
        if not self._quiet:
            print("stopping after this step; Ctrl-C again stops now", file=sys.stderr)  # noqa: T201
