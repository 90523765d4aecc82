"""One job at a time: a bounded queue, one thread that draws, and the pipelines it uses."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Any

from attnctl.cli.order import Order as CommandOrder
from attnctl.cli.studio import load
from attnctl.errors import AttnctlError
from attnctl.recipes import Recipe

from .failures import explain
from .job import Job, Stopped, Work
from .preview import LatentPreview
from .settings import StudioSettings

LOADED_MODELS = 2
_log = logging.getLogger("attnctl.ui")


class QueueFullError(AttnctlError):
    """So many jobs are waiting that no more is taken."""


class Engine:
    """Carries out jobs one after the other, first come, first served.

    Args:
        settings: Which models there are, on what they run, and how long the queue may be.
    """

    def __init__(self, settings: StudioSettings) -> None:
        self._settings = settings
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._news = threading.Condition()
        self._is_closed = False
        self._pipelines: dict[str, tuple[Any, LatentPreview | None]] = {}
        self._thread = threading.Thread(target=self._work, name="attnctl-studio", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> Job:
        """Put a job at the end of the queue.

        Raises:
            QueueFullError: too many are waiting.
        """
        job = Job(work)
        with self._news:
            self._drop_stopped()
            if len(self._waiting) >= self._settings.limits.waiting:
                raise QueueFullError(
                    f"{len(self._waiting)} jobs are waiting already; try again in a while"
                )
            self._waiting.append(job)
            self._tell_places()
            self._news.notify_all()
        return job

    def stop(self, job: Job) -> None:
        """Stop a job, and let those behind it move up."""
        job.stop()
        with self._news:
            self._drop_stopped()
            self._tell_places()

    def close(self) -> None:
        """Stop everything and end the thread."""
        with self._news:
            self._is_closed = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.stop()
            self._news.notify_all()
        self._thread.join(timeout=60)

    def pipeline(self, model: str) -> tuple[Any, LatentPreview | None]:
        """Load a model that is offered, or take it from those in memory; for the thread alone."""
        if model not in self._pipelines:
            while len(self._pipelines) >= LOADED_MODELS:
                del self._pipelines[next(iter(self._pipelines))]
            wanted = Recipe(model=model, prompt="")
            settings = self._settings
            pipe = load(CommandOrder(wanted, settings.machine, (), settings.out))
            self._pipelines[model] = (pipe, LatentPreview.of(pipe))
        return self._pipelines[model]

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return
                job = self._running = self._waiting.popleft()
                self._tell_places()
            if job.begin():
                self._carry_out(job)
            with self._news:
                self._running = None
                self._tell_places()

    def _carry_out(self, job: Job) -> None:
        try:
            job.work.carry_out(job, *self.pipeline(job.work.model))
        except Stopped:
            job.end("stopped")
        except Exception as error:
            if not isinstance(error, AttnctlError):
                _log.exception("a job failed")
            job.end("failed", explain(error))
        else:
            job.end("done")

    def _drop_stopped(self) -> None:
        for job in [job for job in self._waiting if job.is_stopped]:
            self._waiting.remove(job)

    def _tell_places(self) -> None:
        first = 1 if self._running is not None else 0
        for number, job in enumerate(self._waiting, first):
            job.place(number)
