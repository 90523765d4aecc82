"""One visitor's run: what is to be made, how far it is, and what has been finished."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from PIL import Image

from attnctl.pipelines.text_to_image import Picture  # pyright: ignore[reportMissingImports]

State = Literal["waiting", "loading", "running", "done", "stopped", "failed"]
Maps = Literal["by step", "whole run", "off"]
ENDED = ("done", "stopped", "failed")


class Stopped(Exception):  # noqa: N818
    """The visitor has stopped the run; raised between two denoising steps."""


class Work(Protocol):
    """What a job carries out."""

    @property
    def model(self) -> str:
        """Model that it needs."""
        ...

    def carry_out(self, job: Job, pipe: Any, preview: Any) -> None:
        """Do it, telling the job of every step."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture, and the same seed without techniques."""

    steered: Picture
    plain: Picture | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How a job stands.

    Attributes:
        state: Waiting, running, or how it ended.
        ahead: Jobs before it in the queue.
        done: Steps behind it, over all pictures.
        total: Steps of all pictures together; 0 while it is not known.
        active: Techniques that acted in the latest step.
        making: What is made now, in words.
        preview: The latents in colours.
        pairs: Finished pictures.
        result: What other work has given.
        seconds_left: Guess from the steps so far.
        seconds: Time since it began to run.
        error: Why it failed, for the visitor.
    """

    state: State = "waiting"
    ahead: int = 0
    done: int = 0
    total: int = 0
    active: tuple[str, ...] = ()
    making: str = ""
    preview: Image.Image | None = None
    pairs: tuple[Pair, ...] = ()
    result: Any = None
    seconds_left: float | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED


class Job:
    """A run that one thread carries out and another one watches.

    Args:
        work: What to do.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self._news = threading.Condition()
        self._snapshot = Snapshot()
        self._version = 0
        self._is_stopped = False
        self._started = 0.0

    @property
    def snapshot(self) -> Snapshot:
        """How it stands now."""
        with self._news:
            return self._snapshot

    @property
    def is_stopped(self) -> bool:
        """Whether the visitor wants no more of it."""
        return self._is_stopped

    def stop(self) -> None:
        """End a waiting job now and a running one after its step; finished pictures stay."""
        self._is_stopped = True
        with self._news:
            if self._snapshot.state == "waiting":
                self._change(state="stopped")

    def check(self) -> None:
        """Stop here if the visitor wants it.

        Raises:
            Stopped: the visitor does.
        """
        if self._is_stopped:
            raise Stopped

    def wait(self, seen: int, seconds: float) -> tuple[int, Snapshot]:
        """Wait until something changes after version ``seen``, at most so many seconds."""
        with self._news:
            self._news.wait_for(lambda: self._version > seen, seconds)
            return self._version, self._snapshot

    def begin(self) -> bool:
        """Leave the queue; False if the job was stopped while it waited."""
        with self._news:
            if self._snapshot.state != "waiting":
                return False
            self._started = time.monotonic()
            self._change(state="loading", ahead=0)
            return True

    def place(self, ahead: int) -> None:
        """Tell how many jobs come before this one."""
        with self._news:
            if self._snapshot.state == "waiting" and self._snapshot.ahead != ahead:
                self._change(ahead=ahead)

    def plan(self, total: int) -> None:
        """Tell how many steps there will be."""
        with self._news:
            self._started = time.monotonic()  # loading tells nothing of the steps
            self._change(state="running", total=total)

    def make(self, text: str) -> None:
        """Tell what comes next."""
        with self._news:
            self._change(making=text)

    def show(self, preview: Image.Image | None) -> None:
        """Keep a preview; it is shown with the next step."""
        with self._news:
            self._snapshot = replace(self._snapshot, preview=preview)

    def step(self, active: tuple[str, ...]) -> None:
        """Count a step.

        Raises:
            Stopped: the visitor has stopped the job.
        """
        self.check()
        with self._news:
            done, total = self._snapshot.done + 1, self._snapshot.total
            spent = time.monotonic() - self._started
            left = spent * max(total - done, 0) / done
            self._change(done=done, active=active, seconds_left=left)

    def count(self, done: int, total: int) -> None:
        """Tell how much of the work is done, where it is not counted in a recipe's steps.

        Raises:
            Stopped: the visitor has stopped the job.
        """
        self.check()
        with self._news:
            left = (time.monotonic() - self._started) * max(total - done, 0) / max(done, 1)
            self._change(done=done, total=total, seconds_left=left)

    def deliver(self, result: Any) -> None:
        """Keep what the work has given."""
        with self._news:
            self._change(result=result)

    def add(self, pair: Pair) -> None:
        """Keep a finished picture."""
        with self._news:
            self._change(pairs=(*self._snapshot.pairs, pair), preview=None)

    def end(self, state: State, error: str = "") -> None:
        """Tell how it ended."""
        with self._news:
            spent = time.monotonic() - self._started
            self._change(state=state, error=error, preview=None, seconds=spent)

    def _change(self, **changes: object) -> None:
        """Replace fields and wake whoever waits; the lock is held."""
        self._snapshot = replace(self._snapshot, **changes)  # pyright: ignore[reportArgumentType]
        self._version += 1
        self._news.notify_all()
