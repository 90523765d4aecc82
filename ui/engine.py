"""One job at a time: a bounded queue, one thread that draws, and the pipelines it uses."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from attnctl import HeatMaps
from attnctl.cli.order import Order as CommandOrder
from attnctl.cli.studio import load
from attnctl.errors import AttnctlError
from attnctl.pipelines.fitting import check, resolve  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job as Shot,
)
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    draw,
    jobs_of,
)
from attnctl.recipes import Recipe

from .failures import explain
from .job import Job, Order, Pair, Stopped
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

    def submit(self, order: Order) -> Job:
        """Put a job at the end of the queue.

        Raises:
            QueueFullError: too many are waiting.
        """
        job = Job(order)
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
            self._draw(job)
        except Stopped:
            job.end("stopped")
        except Exception as error:
            if not isinstance(error, AttnctlError):
                _log.exception("a job failed")
            job.end("failed", explain(error))
        else:
            job.end("done")

    def _draw(self, job: Job) -> None:
        order = job.order
        pipe, preview = self.pipeline(order.recipe.model)
        recipe = resolve(order.recipe, pipe)
        check(pipe, recipe)
        job.check()
        shots = jobs_of(recipe)
        compare = order.compare and bool(recipe.techniques)
        job.plan((recipe.steps or 1) * len(shots) * (2 if compare else 1))
        maps = None if order.maps == "off" else HeatMaps(keep_steps=order.maps == "by step")
        plain_recipe = recipe.changed(techniques=[])
        for number, shot in enumerate(shots, 1):
            name = f"picture {number} of {len(shots)}, seed {shot.seed}"
            steered = _one(pipe, recipe, shot, job, preview, name, maps)
            plain = None
            if compare:
                name += ", without techniques"
                plain = _one(pipe, plain_recipe, shot, job, preview, name, None)
            job.add(Pair(steered, plain))

    def _drop_stopped(self) -> None:
        for job in [job for job in self._waiting if job.is_stopped]:
            self._waiting.remove(job)

    def _tell_places(self) -> None:
        first = 1 if self._running is not None else 0
        for number, job in enumerate(self._waiting, first):
            job.place(number)


def _one(
    pipe: Any,
    recipe: Recipe,
    shot: Shot,
    job: Job,
    preview: LatentPreview | None,
    name: str,
    maps: HeatMaps | None,
) -> Any:
    """Draw one picture, telling the job of every step."""
    job.make(name)
    on_latents: Callable[[Any], None] | None = None
    if preview is not None:
        on_latents = lambda latents: job.show(preview.picture(latents))  # noqa: E731
    return next(
        draw(
            pipe,
            recipe,
            jobs=[shot],
            maps=maps,
            on_step=_Steps(job, recipe),
            on_latents=on_latents,
        )
    )


class _Steps:
    """Counts the steps of one picture, and knows who acts in each."""

    def __init__(self, job: Job, recipe: Recipe) -> None:
        self._job = job
        self._total = recipe.steps
        self._techniques = recipe.build_techniques()
        self._index = 0

    def __call__(self, pictures: int) -> None:
        acting = [t.name for t in self._techniques if t.strength_at(self._index, self._total)]
        self._index += 1
        self._job.step(tuple(acting))
