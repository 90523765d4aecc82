"""Pipelines that step with copies of their scheduler, such as one for each frame."""

from collections.abc import Sequence
from typing import Any

from attnctl.engine.run import Run
from attnctl.errors import UnsupportedModelError
from attnctl.technique import Technique


def refuse_copies(pipe: Any, run: Run, techniques: Sequence[Technique]) -> None:
    """Refuse what cannot be done where each frame is stepped by itself.

    Raises:
        UnsupportedModelError: latents are moved or edited, or frames stand at different steps.
    """
    name, total = type(pipe).__name__, run.clock.total
    if run.moved is not None or any(t.overrides("after_step") for t in techniques):
        raise UnsupportedModelError(
            f"{name} steps each frame with a scheduler of its own, so latents cannot be moved or "
            "edited between steps; detach the techniques that do so"
        )
    told = getattr(pipe, "num_timesteps", total)
    if told != total:
        raise UnsupportedModelError(
            f"{name} makes {told} steps with copies of a scheduler of {total}, its frames at "
            "different times, so no technique knows its step; denoise all frames together "
            "(ar_step=0)"
        )
