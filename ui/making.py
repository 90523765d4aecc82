"""A run as a visitor sees it: one update after the other until it has ended."""

from __future__ import annotations

from collections.abc import Iterator

from attnctl.errors import AttnctlError, SettingError

from .drawing import Order
from .failures import explain
from .form import Form
from .job import Snapshot, Work
from .restoring import read_dropped
from .studio import Studio
from .visit import Visit

LOOK_SECONDS = 0.3  # the longest time between two looks at a job


def make(studio: Studio, visit: Visit, work: Work) -> Iterator[Snapshot]:
    """Put work into the queue, and yield how it stands; finished pictures go to the visit.

    When nobody listens any more, the job is stopped.

    Raises:
        AttnctlError: the queue is full, or a job of this visit is under way.
        OSError: a picture cannot be saved.
    """
    if visit.is_busy:
        raise SettingError("a run is under way; stop it first")
    job = visit.job = studio.engine.submit(work)
    has_steps = isinstance(work, Order) and work.maps == "by step"
    kept = seen = 0
    try:
        while True:
            seen, snapshot = job.wait(seen, LOOK_SECONDS)
            for pair in snapshot.pairs[kept:]:
                studio.outputs.keep(pair, visit, has_steps=has_steps)
            kept = len(snapshot.pairs)
            yield snapshot
            if snapshot.is_ended:
                return
    finally:
        studio.engine.stop(job)


def restored_form(studio: Studio, path: str, compare: bool, maps: str) -> Form:
    """Read the settings out of a dropped picture or recipe.

    Raises:
        AttnctlError: it holds none, or asks for something that is not offered.
    """
    settings = studio.settings
    recipe = read_dropped(path, settings.models, settings.limits)
    return Form.of(recipe, compare=compare, maps=maps)


def told(error: Exception) -> str:
    """Say to a visitor what went wrong; what is no mistake of theirs goes to the log too."""
    if not isinstance(error, AttnctlError):
        import logging

        logging.getLogger("attnctl.ui").exception("a request failed", exc_info=error)
    return explain(error)
