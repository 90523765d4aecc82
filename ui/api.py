"""Named endpoints for ``gradio_client``: the same work as on the page, with plain values.

Every endpoint works in the session of the client that calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from attnctl.errors import AttnctlError

from .answers import answer_of, refusal
from .clip_api import ClipCalls
from .controls import describe_all
from .drawing import Order
from .exporting import export
from .form import MAPS, Form
from .heat import ALL, draw_heat
from .intake import read_recipe
from .making import make, told
from .restoring import read_dropped
from .studio import Studio
from .visit import Visit


def build(studio: Studio, visit: Any) -> None:
    """Add the endpoints to the page that is being built."""
    with gr.Column(visible=False):
        recipe, answer = gr.JSON(label="recipe"), gr.JSON(label="answer")
        compare = gr.Checkbox(False, label="compare")
        maps = gr.Radio(list(MAPS), value=MAPS[0], label="maps")
        pictures = gr.Gallery(label="pictures", format="png")
        file = gr.File(label="picture or recipe")
        number = gr.Number(1, precision=0, label="number of the picture, 1 is the newest")
        word, layers = gr.Textbox(label="word"), gr.Textbox(ALL, label="layers")
        first, last = gr.Number(0, label="first step"), gr.Number(None, label="last step")
        heat = gr.Image(type="pil", format="png", label="heat map")
        clip, source = gr.File(label="clip"), gr.Textbox(label="what the clip shows")
        options = gr.JSON({}, label="options")
        only_plan = gr.Checkbox(False, label="only plan")
        files = gr.File(label="files", file_count="multiple")
    calls, clips = _Calls(studio), ClipCalls(studio)
    quiet: dict[str, Any] = {"show_progress": "hidden"}
    making = {
        **quiet, "concurrency_id": "make", "concurrency_limit": studio.settings.limits.waiting + 1,
    }  # fmt: skip
    _endpoint(
        calls.generate, [visit, recipe, compare, maps], [pictures, answer], "generate", **making
    )
    asked = [visit, clip, source, recipe, options, only_plan]
    _endpoint(clips.edit, asked, [files, answer], "edit_video", **making)
    _endpoint(clips.make, [visit, recipe], [files, answer], "make_video", **making)
    _endpoint(calls.techniques, None, answer, "techniques", **quiet)
    _endpoint(calls.models, None, answer, "models", **quiet)
    _endpoint(calls.export, [recipe, compare], answer, "export", **quiet)
    _endpoint(calls.restore, [file], answer, "restore", **quiet)
    _endpoint(calls.heat_map, [visit, number, word, layers, first, last], heat, "heat_map", **quiet)
    _endpoint(calls.stop, [visit], answer, "stop", queue=False, **quiet)


def _endpoint(fn: Any, inputs: Any, outputs: Any, name: str, **options: Any) -> None:
    gr.Button(visible=False).click(fn, inputs, outputs, api_name=name, **options)


class _Calls:
    """What the endpoints do; mistakes come back as ``gr.Error`` with their text."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._settings = studio.settings

    def generate(
        self, visit: Visit, recipe: Any, compare: bool, maps: str
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Make pictures; on the way each update says how far it is."""
        try:
            form = Form.of(self._recipe(recipe), compare=compare, maps=maps)
            is_new = not isinstance(recipe, dict) or recipe.get("seed") is None
            order = form.order(self._settings)
            if is_new:
                order = Order(order.recipe.changed(seed=_new_seed()), order.compare, order.maps)
            for snapshot in make(self._studio, visit, order):
                made = visit.shown[: len(snapshot.pairs)] if snapshot.is_ended else []
                files = [(str(one.file), one.caption) for one in made]
                if snapshot.state == "failed":
                    raise refusal(snapshot.error)
                yield files, answer_of(snapshot, [one.recipe.to_dict() for one in made])
        except (AttnctlError, OSError) as error:
            raise refusal(told(error)) from None

    def techniques(self) -> list[dict[str, Any]]:
        """List the techniques with their parameters."""
        return describe_all()

    def models(self) -> list[str]:
        """List the models that are offered."""
        return list(self._settings.models)

    def export(self, recipe: Any, compare: bool) -> dict[str, str]:
        """Write a recipe as YAML, as Python and as a command line."""
        try:
            read = self._recipe(recipe)
            return asdict(export(read.changed(seed=read.seed or 0), compare=compare))
        except AttnctlError as error:
            raise refusal(told(error)) from None

    def restore(self, path: str | None) -> dict[str, Any]:
        """Read the recipe in a picture that was made here."""
        if path is None:
            raise refusal("no file came; send a PNG picture or a recipe")
        try:
            return read_dropped(path, self._settings.models, self._settings.limits).to_dict()
        except (AttnctlError, OSError) as error:
            raise refusal(told(error)) from None

    def heat_map(
        self, visit: Visit, number: int, word: str, layers: str, first: float, last: float | None
    ) -> Any:
        """Draw where a word looked in a picture of this session."""
        try:
            shown = visit.shown[number - 1] if 0 < number <= len(visit.shown) else None
            stop = None if last is None else int(last)
            return draw_heat(shown, word, layers or ALL, int(first or 0), stop)
        except AttnctlError as error:
            raise refusal(told(error)) from None

    def stop(self, visit: Visit) -> bool:
        """Stop this session's run; tell whether there was one."""
        if visit.job is None or not visit.is_busy:
            return False
        self._studio.engine.stop(visit.job)
        return True

    def _recipe(self, values: Any) -> Any:
        return read_recipe(values, self._settings.models, self._settings.limits)


def _new_seed() -> int:
    import secrets

    return secrets.randbelow(2**32)
