"""What the tabs that change a file have in common: a run with its stage, buttons and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from attnctl.errors import AttnctlError

from ..job import Work
from ..making import make, told
from ..parts import QUIET
from ..stage import error_html, stage_html
from ..studio import Studio
from ..visit import Visit


@dataclass(frozen=True, slots=True)
class RunParts:
    """Components that follow a run.

    Attributes:
        stage: Shows how far it is, and what went wrong.
        starts: Buttons that start something; off while anything runs.
        stop: Ends it; on while anything runs.
        shown: What is filled with the result.
    """

    stage: Any
    starts: Sequence[Any]
    stop: Any
    shown: Sequence[Any]

    @property
    def outputs(self) -> list[Any]:
        """All of them, as a run fills them."""
        return [self.stage, *self.starts, self.stop, *self.shown]

    def values(self, page: str, *, is_busy: bool, shown: Sequence[Any] | None = None) -> list[Any]:
        """Values of :attr:`outputs`; without ``shown`` the results stay as they are."""
        buttons = [gr.update(interactive=not is_busy)] * len(self.starts)
        still = [gr.skip()] * len(self.shown)
        return [
            page,
            *buttons,
            gr.update(interactive=is_busy),
            *(still if shown is None else shown),
        ]


def wire_start(
    studio: Studio,
    visit: Any,
    parts: RunParts,
    start: Any,
    fields: list[Any],
    wish_of: Callable[..., Work],
    show: Callable[[Visit, Any], Sequence[Any]],
) -> None:
    """Let a button start work.

    Args:
        studio: The machinery.
        visit: The ``gr.State`` that holds the session's :class:`Visit`.
        parts: What follows the run.
        start: The button.
        fields: What is asked for.
        wish_of: Checks the values of ``fields``; raises an ``AttnctlError`` for the visitor.
        show: Makes the values of ``parts.shown`` from the work's result.
    """

    def run(now: Visit, *values: Any) -> Iterator[list[Any]]:
        try:
            for snapshot in make(studio, now, wish_of(*values)):
                is_there = snapshot.is_ended and snapshot.result is not None
                shown = show(now, snapshot.result) if is_there else None
                page = stage_html(snapshot)
                yield parts.values(page, is_busy=not snapshot.is_ended, shown=shown)
        except (AttnctlError, OSError) as error:
            yield parts.values(error_html(told(error)), is_busy=False)

    start.click(
        run, [visit, *fields], parts.outputs, concurrency_id="make", trigger_mode="once",
        concurrency_limit=studio.settings.limits.waiting + 1, **QUIET,
    )  # fmt: skip


def wire_stop(studio: Studio, visit: Any, stop: Any) -> None:
    """Let a button end the session's run after its step."""

    def end(now: Visit) -> Any:
        if now.job is not None:
            studio.engine.stop(now.job)
        return gr.update(interactive=False)

    stop.click(end, [visit], [stop], queue=False, **QUIET)
