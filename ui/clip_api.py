"""Endpoints for clips, with plain values and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attnctl.errors import AttnctlError, RecipeError
from attnctl.pipelines.video_memory import VideoPlan  # pyright: ignore[reportMissingImports]

from .answers import answer_of, refusal
from .clip_edits import MadeClip
from .clip_form import ClipOptions, clip_wish, words_wish
from .intake import read_recipe
from .job import Snapshot, Work
from .making import make, told
from .studio import Studio
from .visit import Visit

Answer = tuple[list[str], dict[str, Any]]


class ClipCalls:
    """What the endpoints do; mistakes come back as ``gr.Error`` with their text."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def edit(
        self, visit: Visit, path: str | None, source: str, recipe: Any, options: Any, plan: bool
    ) -> Iterator[Answer]:
        """Edit a clip, or plan it; on the way each update says how far it is."""
        try:
            if path is None:
                raise RecipeError("no file came; send a clip")
            if not isinstance(options or {}, dict):
                raise RecipeError("options are names and values")
            read = self._recipe(recipe)
            chosen = ClipOptions.read(options or {})
            wish = clip_wish(self._studio, Path(path), source, read, chosen, only_plan=plan is True)
            yield from self._carry_out(visit, wish)
        except (AttnctlError, OSError) as error:
            raise refusal(told(error)) from None

    def make(self, visit: Visit, recipe: Any) -> Iterator[Answer]:
        """Make a clip from words; on the way each update says how far it is."""
        try:
            read = self._recipe(recipe)
            wish = words_wish(self._studio, read.changed(seed=read.seed or 0))
            yield from self._carry_out(visit, wish)
        except (AttnctlError, OSError) as error:
            raise refusal(told(error)) from None

    def _carry_out(self, visit: Visit, wish: Work) -> Iterator[Answer]:
        for snapshot in make(self._studio, visit, wish):
            if snapshot.state == "failed":
                raise refusal(snapshot.error)
            yield self._answer(visit, snapshot)

    def _answer(self, visit: Visit, snapshot: Snapshot) -> Answer:
        answer = answer_of(snapshot, [])
        result: Any = snapshot.result if snapshot.is_ended else None
        if isinstance(result, VideoPlan):
            return [], {**answer, "plan": result.to_dict()}
        if not isinstance(result, MadeClip):
            return [], answer
        shown = result.handed_out(self._studio.outputs, visit)
        facts = {"facts": list(result.facts), "report": result.summary, "command": result.command}
        return [str(file) for file in shown.values()], {**answer, **facts, "kinds": list(shown)}

    def _recipe(self, values: Any) -> Any:
        return read_recipe(values, self._studio.settings.models, self._studio.settings.limits)
