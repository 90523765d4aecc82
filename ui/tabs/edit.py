"""The second tab: drop in a picture, say what it shows and what it should show, and edit it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from attnctl.cli.edit_order import STEPS, EditOrder
from attnctl.errors import AttnctlError, SettingError
from attnctl.imaging import open_picture
from attnctl.picture_files import read_picture
from attnctl.pipelines.edit_settings import (  # pyright: ignore[reportMissingImports]
    EditSettings,
    check_prompts,
)

from ..edits import Edited, EditWish
from ..form import Form
from ..heat import view
from ..making import make, told
from ..parts import stack as stack_part
from ..stage import error_html, stage_html
from ..studio import Studio
from ..visit import Visit

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
    guidance: float | None
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
        read = _read(file)
        settings = EditSettings(
            self.method, recipe.steps or STEPS, self.guidance, seed=recipe.seed or 0
        )
        order = EditOrder(
            path=Path(file.name),
            picture=read.image,
            sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
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
        with gr.Column(scale=5, min_width=340, elem_classes="ac-desk"):
            fields, buttons = _desk(studio)
        with gr.Column(scale=6, min_width=340, elem_classes="ac-view"):
            stage = gr.HTML(_EMPTY, elem_id="ac-edit-stage")
            shown = _view()
    _wire(studio, visit, fields, [stage, *buttons, *shown])


def _desk(studio: Studio) -> tuple[list[Any], list[Any]]:
    """Make the fields, in the order of :class:`Asked`, and the buttons."""
    settings = studio.settings
    texts: dict[str, Any] = {"max_length": settings.limits.prompt_letters}
    dropped = gr.File(label="Picture", file_types=["image"], height=120, elem_id="ac-edit-drop")
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
    first = settings.models[0]
    stack = stack_part("ac-edit-techniques", first, STEPS, {}, offered="for_edits")
    with gr.Accordion("Model and method", open=False, elem_id="ac-edit-more"):
        model = gr.Dropdown(list(settings.models), value=first, label="Model")
        method = gr.Dropdown(list(METHODS), value=METHODS[0], label="Method")
        steps = gr.Slider(
            1, settings.limits.steps, STEPS, step=1, label="Denoising steps",
            elem_id="ac-edit-steps",
        )  # fmt: skip
        guidance = gr.Number(None, label="Guidance scale", info="empty: the model's own")
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
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


def _wire(studio: Studio, visit: Any, fields: list[Any], outputs: list[Any]) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    run, stop = outputs[1:3]

    def edit(now: Visit, *values: Any) -> Iterator[tuple[Any, ...]]:
        still = [gr.skip()] * 5
        idle = (gr.update(interactive=True), gr.update(interactive=False))
        going = (gr.update(interactive=False), gr.update(interactive=True))
        try:
            for snapshot in make(studio, now, Asked(*values).wish(studio)):
                if not snapshot.is_ended:
                    yield (stage_html(snapshot), *going, *still)
                elif snapshot.result is None:
                    yield (stage_html(snapshot), *idle, *still)
                else:
                    yield (stage_html(snapshot), *idle, *_shown(studio, snapshot.result))
        except (AttnctlError, OSError) as error:
            yield (error_html(told(error)), *idle, *still)

    def end(now: Visit) -> Any:
        if now.job is not None:
            studio.engine.stop(now.job)
        return gr.update(interactive=False)

    run.click(
        edit, [visit, *fields], outputs, concurrency_id="make", trigger_mode="once",
        concurrency_limit=studio.settings.limits.waiting + 1, **quiet,
    )  # fmt: skip
    stop.click(end, [visit], [stop], queue=False, **quiet)


def _shown(studio: Studio, made: Edited) -> tuple[Any, ...]:
    scores = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in made.scores.items())
    report = f"<pre>{escape(made.summary)}</pre>" if made.summary else ""
    more = f"<details><summary>what ran</summary>{report}</details>" if report else ""
    return (
        gr.update(visible=True),
        (view(made.source), view(made.edited)),
        f'<p class="ac-facts"><b>likeness of source and edit</b> {escape(scores)}</p>{more}',
        str(studio.outputs.hand_out(made.files["edited"])),
        view(open_picture(made.files["difference"])),
    )


def _read(file: Path) -> Any:
    try:
        return read_picture(file)
    except AttnctlError as error:  # the visitor knows the file by its own name
        raise SettingError(str(error).replace(str(file), file.name)) from None
