"""The first tab: write, choose techniques, generate, compare, and see where words looked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from attnctl.errors import AttnctlError

from ..exporting import export
from ..form import DEFAULT_GUIDANCE, DEFAULT_STEPS, MAPS, Form
from ..making import make, restored_form, told
from ..parts import desk_column, subjects_script, view_column, wire_stack
from ..parts import stack as stack_part
from ..parts import words as words_part
from ..presets import suggestions
from ..stage import EMPTY, error_html, stage_html
from ..studio import Studio
from ..visit import Visit
from .looking import Looking

SCHEDULERS = (
    "", "DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip
FORM = [field.name for field in fields(Form)]

# It happens in the browser: the sentence follows the prompt and the stack.
_FOLLOW = """(prompt, stack) => {
  const cards = (stack && stack.techniques) || [];
  return {text: prompt, chosen: cards.flatMap((card) => card.parameters.subjects || [])};
}"""
_SHOW_STAGE = "() => document.querySelector('#ac-stage').scrollIntoView({block: 'nearest'})"


@dataclass(frozen=True, slots=True)
class Desk:
    """The fields and buttons on the left."""

    form: dict[str, Any]
    sentence: Any
    preset: Any
    run: Any
    stop: Any
    dropped: Any
    exported: tuple[Any, Any, Any]

    @property
    def fields(self) -> list[Any]:
        """The form's components, in the order of :class:`Form`."""
        return [self.form[name] for name in FORM]


def build(studio: Studio, visit: Any) -> None:
    """Lay out the tab, and tell what happens on it.

    Args:
        studio: The machinery.
        visit: The ``gr.State`` that holds the session's :class:`Visit`.
    """
    with gr.Row(elem_classes="ac-page"):
        with desk_column():
            desk = _desk(studio)
        with view_column():
            stage = gr.HTML(EMPTY, elem_id="ac-stage")
            looking = Looking.lay_out()
    looking.wire(visit, lambda key, now: _settings_of(visit_key=key, visit=now), desk.fields)
    _wire_run(studio, visit, desk, stage, looking)
    _wire_settings(studio, desk, stage)


def _desk(studio: Studio) -> Desk:
    form: dict[str, Any] = {}
    form["prompt"] = gr.Textbox(
        "a red circle and a blue square",
        label="Prompt",
        lines=2,
        max_lines=6,
        max_length=studio.settings.limits.prompt_letters,
        elem_id="ac-prompt",
    )
    sentence = words_part(
        "ac-subjects", "make this word a subject", "a red circle and a blue square"
    )
    with gr.Row(elem_classes="ac-buttons"):
        run = gr.Button("Generate", variant="primary", elem_id="ac-run", scale=3, min_width=140)
        stop = gr.Button(
            "Stop", variant="stop", elem_id="ac-stop", interactive=False, scale=1, min_width=90
        )
    _common_fields(studio, form)
    form["stack"] = stack_part(
        "ac-techniques",
        studio.settings.picture_models[0],
        DEFAULT_STEPS,
        suggestions(studio.presets),
    )
    _picture_fields(studio, form)
    with gr.Accordion("Start from a preset, or from a picture", open=False):
        preset = gr.Dropdown(["", *studio.presets], value="", label="Preset", elem_id="ac-preset")
        dropped = gr.File(
            label="Drop a picture that was made here, or a recipe",
            file_types=[".png", ".yaml", ".yml", ".json"],
            height=120,
            elem_id="ac-drop",
        )
    with gr.Accordion("Take it elsewhere", open=False, elem_id="ac-export"):
        exported = (
            _code("Recipe", "yaml", "ac-recipe"),
            _code("Python", "python", "ac-python"),
            _code("Command line", "shell", "ac-line"),
        )
    return Desk(form, sentence, preset, run, stop, dropped, exported)


def _code(label: str, language: Any, name: str) -> gr.Code:
    return gr.Code(label=label, language=language, elem_id=name, interactive=False, wrap_lines=True)


def _common_fields(studio: Studio, form: dict[str, Any]) -> None:
    most = studio.settings.limits.pictures
    with gr.Row(elem_classes="ac-few"):
        form["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="ac-seed")
        form["count"] = gr.Slider(1, most, 1, step=1, label="Pictures", elem_id="ac-count")
    with gr.Row(elem_classes="ac-few"):
        form["is_new_seed"] = gr.Checkbox(False, label="New seed each time", elem_id="ac-new-seed")
        form["compare"] = gr.Checkbox(True, label="Compare with plain", elem_id="ac-compare")


def _picture_fields(studio: Studio, form: dict[str, Any]) -> None:
    limits = studio.settings.limits
    with gr.Accordion("Picture and model", open=False, elem_id="ac-more"):
        models = list(studio.settings.picture_models)
        form["model"] = gr.Dropdown(models, value=models[0], label="Model", elem_id="ac-model")
        form["steps"] = gr.Slider(
            1, limits.steps, DEFAULT_STEPS, step=1, label="Denoising steps", elem_id="ac-steps"
        )
        form["guidance"] = gr.Number(
            DEFAULT_GUIDANCE, label="Guidance scale", info="0 or 1 is off", elem_id="ac-guidance"
        )
        form["negative"] = gr.Textbox(
            label="Negative prompt", max_length=limits.prompt_letters, elem_id="ac-negative"
        )
        form["size"] = gr.Textbox(
            label="Size", placeholder="the model's own", info="width x height, pixels",
            elem_id="ac-size",
        )  # fmt: skip
        form["scheduler"] = gr.Dropdown(
            [("the model's own", ""), *SCHEDULERS[1:]],
            value="",
            label="Scheduler",
            allow_custom_value=True,
            elem_id="ac-scheduler",
        )
        form["maps"] = gr.Radio(
            list(MAPS), value=MAPS[0], label="Heat maps", elem_id="ac-maps",
            info="by step takes the most memory",
        )  # fmt: skip


def _wire_run(studio: Studio, visit: Any, desk: Desk, stage: Any, looking: Looking) -> None:
    buttons = [desk.run, desk.stop, desk.form["seed"]]

    def generate(now: Visit, *values: Any) -> Iterator[tuple[Any, ...]]:
        skip = [gr.skip()] * len(looking.outputs)
        try:
            order = Form(*values).order(studio.settings)
            seed = order.recipe.seed
            going = (gr.update(interactive=False), gr.update(interactive=True), seed)
            for snapshot in make(studio, now, order):
                if snapshot.is_ended:
                    shown = now.shown[0] if snapshot.pairs else None
                    yield (stage_html(snapshot), *_idle(), *looking.show(now, shown))
                else:
                    yield (stage_html(snapshot), *going, *skip)
        except (AttnctlError, OSError) as error:
            yield (error_html(told(error)), *_idle(), *skip)

    def stop(now: Visit) -> Any:
        if now.job is not None:
            studio.engine.stop(now.job)
        return gr.update(interactive=False, wrap_lines=True)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    gr.on(
        [desk.run.click, desk.form["prompt"].submit],
        generate,
        [visit, *desk.fields],
        [stage, *buttons, *looking.outputs],
        concurrency_limit=studio.settings.limits.waiting + 1,
        concurrency_id="make",
        trigger_mode="once",
        **quiet,
    )
    desk.run.click(None, js=_SHOW_STAGE, **quiet)
    desk.stop.click(stop, [visit], [desk.stop], queue=False, **quiet)


def _idle() -> tuple[Any, ...]:
    return gr.update(interactive=True), gr.update(interactive=False), gr.skip()


def _wire_settings(studio: Studio, desk: Desk, stage: Any) -> None:
    form = desk.form
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

    def start_from(name: str, compare: bool, maps: str) -> list[Any]:
        recipe = studio.presets.get(name)
        if recipe is None:
            return [gr.skip()] * len(FORM)
        return _filled(Form.of(recipe, compare=compare, maps=maps))

    def restore(path: str | None, compare: bool, maps: str) -> list[Any]:
        if path is None:
            return [gr.skip()] * (len(FORM) + 1)
        try:
            filled = _filled(restored_form(studio, path, compare, maps))
        except (AttnctlError, OSError) as error:
            return [*[gr.skip()] * len(FORM), error_html(told(error))]
        return [*filled, _RESTORED]

    sentence, stack = desk.sentence, form["stack"]
    script = subjects_script(suggestions(studio.presets))
    sentence.pick(None, [sentence, stack], [stack], js=script, **quiet)
    follow: dict[str, Any] = {"fn": None, "inputs": [form["prompt"], stack], "outputs": [sentence]}
    gr.on([form["prompt"].change, stack.change], js=_FOLLOW, **follow, **quiet)
    wire_stack("ac-techniques", form["steps"], form["model"])
    kept = [form["compare"], form["maps"]]
    desk.preset.input(start_from, [desk.preset, *kept], desk.fields, queue=False, **quiet)
    desk.dropped.upload(restore, [desk.dropped, *kept], [*desk.fields, stage], **quiet)
    _wire_export(studio, desk, quiet)


def _wire_export(studio: Studio, desk: Desk, quiet: dict[str, Any]) -> None:
    def write(*values: Any) -> tuple[str, str, str]:
        try:
            made = Form(*values).order(studio.settings)
        except AttnctlError as error:
            text = "".join(f"# {line}\n" for line in told(error).splitlines())
            return text, text, text
        texts = export(made.recipe, compare=made.compare)
        return texts.recipe, texts.python, texts.command

    changes = [one.change for one in desk.fields]
    exported = list(desk.exported)
    gr.on(
        changes, write, desk.fields, exported, trigger_mode="always_last", queue=False, **quiet
    )  # fmt: skip


_RESTORED = (
    '<div class="ac-stage ac-ended" role="status" data-state="restored">'
    "<b>Settings are back</b> press Generate to make the picture again</div>"
)


def _filled(form: Form) -> list[Any]:
    return [getattr(form, name) for name in FORM]


def _settings_of(visit_key: int | None, visit: Visit) -> list[Any]:
    """Fill the form with the settings of a picture of this visit."""
    shown = visit.find(visit_key)
    if shown is None:
        return [gr.skip()] * len(FORM)
    form = Form.of(shown.recipe, compare=shown.plain is not None, maps=MAPS[0])
    return _filled(form)
