"""The second tab: drop in a picture, say what it shows and what it should show, and edit it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from attnctl.cli.edit_order import STEPS, EditOrder
from attnctl.errors import SettingError
from attnctl.files import sha256_of
from attnctl.imaging import open_picture
from attnctl.picture_files import read_picture
from attnctl.pipelines.edit_settings import (  # pyright: ignore[reportMissingImports]
    EditSettings,
    check_prompts,
)

from ..edits import Edited, EditWish
from ..failures import naming
from ..form import Form
from ..heat import view
from ..parts import desk_column, guidance_field, view_column, wire_stack
from ..parts import stack as stack_part
from ..studio import Studio
from ..visit import Visit
from .looking import what_ran
from .running import RunParts, wire_start, wire_stop

METHODS = (
    "auto", "ddim", "euler", "rf-solver", "fireflow", "rf-inversion", "flow-edit", "sdedit",
    "regenerate",
)  # fmt: skip
_EMPTY = (
    '<div class="ac-stage ac-empty" role="status"><h3>No picture yet</h3>'
    "<p>Drop one in, say what it shows, and what it should show instead.</p></div>"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What stands in the fields of this tab, in their order."""

    path: str | None
    source: str
    target: str
    model: str
    method: str
    steps: int | float
    guidance: str | None
    seed: int | float | None
    stack: Any

    def wish(self, studio: Studio) -> EditWish:
        """Check everything that can be checked without the model.

        Raises:
            AttnctlError: saying what is wrong.
        """
        if self.path is None:
            raise SettingError("there is no picture; drop one in first")
        form = Form(
            self.target, model=self.model, steps=self.steps, guidance=self.guidance,
            seed=self.seed, stack=self.stack,
        )  # fmt: skip
        recipe = form.order(studio.settings).recipe
        if len(self.source) > studio.settings.limits.prompt_letters:
            raise SettingError("what the picture shows takes too many letters; shorten it")
        check_prompts(self.source, self.target)
        if self.method not in METHODS:
            raise SettingError(f"the method {self.method!r:.50} is not offered")
        file = Path(self.path)
        with naming(file):  # the visitor knows the file by its own name
            read = read_picture(file)
        settings = EditSettings(
            self.method, recipe.steps or STEPS, recipe.guidance, seed=recipe.seed or 0
        )
        order = EditOrder(
            path=Path(file.name),
            picture=read.image,
            sha256=sha256_of(file),
            notes=read.notes,
            mask=None,
            source=self.source,
            recipe=recipe,
            settings=settings,
            machine=studio.settings.machine,
            out=studio.settings.out,
            compare=False,
        )
        return EditWish(order)


def build(studio: Studio, visit: Any) -> None:
    """Lay out the tab, and tell what happens on it.

    Args:
        studio: The machinery.
        visit: The ``gr.State`` that holds the session's :class:`Visit`.
    """
    with gr.Row(elem_classes="ac-page"):
        with desk_column():
            fields, buttons = _desk(studio)
        with view_column():
            stage = gr.HTML(_EMPTY, elem_id="ac-edit-stage")
            shown = _view()
    run, stop = buttons
    _wire(studio, visit, fields, RunParts(stage, [run], stop, shown))


def _desk(studio: Studio) -> tuple[list[Any], list[Any]]:
    """Make the fields, in the order of :class:`Asked`, and the buttons."""
    settings = studio.settings
    texts: dict[str, Any] = {"max_length": settings.limits.prompt_letters}
    dropped = gr.File(label="Picture", file_types=["image"], height=140, elem_id="ac-edit-drop")
    source = gr.Textbox(
        label="It shows", placeholder="a red circle and a blue square",
        elem_id="ac-edit-source", **texts,
    )  # fmt: skip
    target = gr.Textbox(
        label="It should show", placeholder="a red circle and a green square",
        elem_id="ac-edit-target", **texts,
    )  # fmt: skip
    with gr.Row(elem_classes="ac-edit-buttons"):
        run = gr.Button("Edit", variant="primary", elem_id="ac-edit-run", scale=3)
        stop = gr.Button("Stop", variant="stop", elem_id="ac-edit-stop", interactive=False, scale=1)
    first = settings.picture_models[0]
    stack = stack_part("ac-edit-techniques", first, STEPS, {}, offered="for_edits")
    with gr.Accordion("Model and method", open=False, elem_id="ac-edit-more"):
        model = gr.Dropdown(list(settings.picture_models), value=first, label="Model")
        method = gr.Dropdown(list(METHODS), value=METHODS[0], label="Method")
        steps = gr.Slider(
            1, settings.limits.steps, STEPS, step=1, label="Denoising steps",
            elem_id="ac-edit-steps",
        )  # fmt: skip
        guidance = guidance_field("ac-edit-guidance")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
    wire_stack("ac-edit-techniques", steps, model)
    fields = [dropped, source, target, model, method, steps, guidance, seed, stack]
    return fields, [run, stop]


def _view() -> list[Any]:
    """Make what :func:`_shown` fills, in its order."""
    with gr.Column(visible=False, elem_id="ac-edit-result") as result:
        slider = gr.ImageSlider(
            label="source | edit", type="pil", format="png", interactive=False,
            elem_id="ac-edit-slider", buttons=["fullscreen"], max_height=460,
        )  # fmt: skip
        facts = gr.HTML(elem_id="ac-edit-facts")
        file = gr.DownloadButton("Download PNG", size="sm", elem_id="ac-edit-file")
        difference = gr.Image(
            label="what changed", type="pil", format="png", interactive=False,
            elem_id="ac-edit-difference", buttons=["fullscreen"],
        )  # fmt: skip
    return [result, slider, facts, file, difference]


def _wire(studio: Studio, visit: Any, fields: list[Any], parts: RunParts) -> None:
    def wish(*values: Any) -> EditWish:
        return Asked(*values).wish(studio)

    def show(_visit: Visit, made: Edited) -> tuple[Any, ...]:
        return _shown(studio, made)

    wire_start(studio, visit, parts, parts.starts[0], fields, wish, show)
    wire_stop(studio, visit, parts.stop)


def _shown(studio: Studio, made: Edited) -> tuple[Any, ...]:
    scores = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in made.scores.items())
    return (
        gr.update(visible=True),
        (view(made.source), view(made.edited)),
        f'<p class="ac-facts"><b>likeness of source and edit</b> {escape(scores)}</p>'
        + what_ran(made.summary),
        str(studio.outputs.hand_out(made.files["edited"])),
        view(open_picture(made.files["difference"])),
    )
