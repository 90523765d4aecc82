"""The third tab: a clip is changed with words, or made from words alone."""

from __future__ import annotations

from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from attnctl.cli.video_order import STEPS
from attnctl.errors import AttnctlError, SettingError
from attnctl.loading import BUNDLED

from ..clip_edits import ClipWish
from ..clip_form import FLOWS, MADE_FRAMES, START, USUAL, ClipOptions, clip_wish, words_wish
from ..clip_words import WordsWish
from ..clips import ENDINGS, look_at
from ..form import Form, whole
from ..making import told
from ..parts import QUIET, desk_column, guidance_field, view_column, wire_stack
from ..parts import stack as stack_part
from ..studio import Studio
from ..visit import Visit
from .clip_view import ClipView
from .running import RunParts, wire_start, wire_stop

CLIP, WORDS = "a clip", "words alone"
_ONLY_CLIP = ("path", "source", "frames", "stride", "chunk", "flow", "inject", "sound")
_ONLY_WORDS = ("made_frames", "seed")
_TARGET = "It should show"
_EMPTY = (
    '<div class="ac-stage ac-empty" role="status"><h3>No clip yet</h3>'
    "<p>Drop one in, say what it shows, and what it should show instead. Plan tells what that "
    "takes before anything is computed.</p></div>"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What stands in the fields of this tab; their names are those of :class:`Desk`."""

    begin: str
    path: str | None
    source: str
    target: str
    stack: Any
    model: str
    frames: str
    stride: int | float
    made_frames: int | float
    steps: int | float
    guidance: str | None
    seed: int | float | None
    negative: str
    size: str
    chunk: int | float
    flow: str
    inject: int | float
    sound: bool

    def wish(self, studio: Studio, *, only_plan: bool = False) -> ClipWish | WordsWish:
        """Check everything that can be checked without the model.

        Raises:
            AttnctlError: saying what is wrong.
        """
        if self.begin != WORDS and self.path is None:
            raise SettingError("there is no clip; drop one in first")
        form = Form(
            self.target, negative=self.negative, model=self.model, steps=self.steps,
            guidance=self.guidance, seed=self.seed, size=self.size, stack=self.stack,
        )  # fmt: skip
        recipe = form.order(studio.settings).recipe
        if self.begin == WORDS or self.path is None:
            return words_wish(studio, recipe.changed(frames=whole(self.made_frames)))
        options = ClipOptions.read({
            "frames": self.frames or "", "stride": whole(self.stride), "chunk": whole(self.chunk),
            "flow": self.flow, "inject": self.inject, "sound": self.sound,
        })  # fmt: skip
        file = Path(self.path)
        return clip_wish(studio, file, self.source, recipe, options, only_plan=only_plan)


FIELDS = [field.name for field in fields(Asked)]


def build(studio: Studio, visit: Any) -> None:
    """Lay out the tab; ``visit`` is the ``gr.State`` that holds the session's :class:`Visit`."""
    with gr.Row(elem_classes="ac-page"):
        with desk_column():
            desk, buttons = _desk(studio)
        with view_column():
            stage = gr.HTML(_EMPTY, elem_id="ac-video-stage")
            view = ClipView.lay_out()
    run, plan, stop = buttons
    parts = RunParts(stage, [run, plan], stop, view.outputs)
    asked = [desk[name] for name in FIELDS]

    def show(now: Visit, result: Any) -> Any:
        return view.values(studio.outputs, now, result)

    for button, only_plan in ((run, False), (plan, True)):
        wire_start(
            studio, visit, parts, button, asked,
            lambda *values, only_plan=only_plan: Asked(*values).wish(studio, only_plan=only_plan),
            show,
        )  # fmt: skip
    wire_stop(studio, visit, stop)
    _wire_fields(studio, desk, run, plan)


def _desk(studio: Studio) -> tuple[dict[str, Any], list[Any]]:
    """Make the fields by their names, and the buttons."""
    letters = studio.settings.limits.prompt_letters
    desk: dict[str, Any] = {}
    desk["begin"] = gr.Radio(
        [CLIP, WORDS], value=CLIP, label="Begin with", elem_id="ac-video-begin"
    )
    desk["path"] = gr.File(
        label="Clip", file_types=list(ENDINGS), height=140, elem_id="ac-video-drop"
    )
    desk["told"] = gr.HTML(elem_id="ac-video-told", visible=False)
    desk["source"] = gr.Textbox(
        label="It shows", placeholder="a red circle and a blue square", max_length=letters,
        elem_id="ac-video-source-words",
    )  # fmt: skip
    desk["target"] = gr.Textbox(
        label=_TARGET, placeholder="a green circle and a blue square", max_length=letters,
        elem_id="ac-video-target-words",
    )  # fmt: skip
    with gr.Row(elem_classes="ac-edit-buttons"):
        run = gr.Button("Edit", variant="primary", elem_id="ac-video-run", scale=3, min_width=90)
        plan = gr.Button("Plan", elem_id="ac-video-plan-it", scale=1, min_width=70)
        stop = gr.Button(
            "Stop", variant="stop", elem_id="ac-video-stop", interactive=False, scale=1,
            min_width=70,
        )  # fmt: skip
    first = studio.settings.picture_models[0]
    desk["stack"] = stack_part(
        "ac-video-techniques", first, STEPS, {}, offered="for_clips", start=START
    )
    with gr.Accordion("Frames and motion", open=False, elem_id="ac-video-frames-more"):
        _frame_fields(studio, desk)
    with gr.Accordion("Model and steps", open=False, elem_id="ac-video-more"):
        _model_fields(studio, desk)
    return desk, [run, plan, stop]


def _frame_fields(studio: Studio, desk: dict[str, Any]) -> None:
    limits = studio.settings.limits
    desk["frames"] = gr.Textbox(
        label="Frames", placeholder="all", info="such as 10-50: the last one is left out",
        elem_id="ac-video-frames",
    )  # fmt: skip
    desk["made_frames"] = gr.Slider(
        1, limits.frames, MADE_FRAMES, step=1, label="Frames", visible=False,
        elem_id="ac-video-made-frames",
    )  # fmt: skip
    desk["stride"] = gr.Slider(
        1, 16, 1, step=1, label="Stride", info="take every so many-th frame",
        elem_id="ac-video-stride",
    )  # fmt: skip
    desk["chunk"] = gr.Slider(
        1, limits.chunk, USUAL.chunk, step=1, label="Frames together",
        info="edited as one; memory grows with them", elem_id="ac-video-chunk",
    )  # fmt: skip
    desk["flow"] = gr.Dropdown(
        list(FLOWS), value=USUAL.flow, label="Motion", info="what estimates it",
        elem_id="ac-video-flow",
    )  # fmt: skip
    desk["inject"] = gr.Slider(
        0, 1, USUAL.inject, step=0.05, label="Inject",
        info="until this part of the run, features of the clip are taken over",
        elem_id="ac-video-inject",
    )  # fmt: skip
    desk["sound"] = gr.Checkbox(True, label="Keep the sound", elem_id="ac-video-sound")


def _model_fields(studio: Studio, desk: dict[str, Any]) -> None:
    settings = studio.settings
    models, limits = list(settings.models), settings.limits
    desk["model"] = gr.Dropdown(
        models, value=settings.picture_models[0], label="Model", elem_id="ac-video-model"
    )
    desk["steps"] = gr.Slider(
        1, limits.steps, STEPS, step=1, label="Denoising steps", elem_id="ac-video-steps"
    )
    desk["guidance"] = guidance_field("ac-video-guidance")
    desk["seed"] = gr.Number(
        0, label="Seed", precision=0, minimum=0, visible=False, elem_id="ac-video-seed"
    )
    desk["negative"] = gr.Textbox(
        label="Negative prompt", max_length=limits.prompt_letters, elem_id="ac-video-negative"
    )
    desk["size"] = gr.Textbox(
        label="Size", placeholder="the model's own", info="width x height, pixels",
        elem_id="ac-video-size",
    )  # fmt: skip


def _wire_fields(studio: Studio, desk: dict[str, Any], run: Any, plan: Any) -> None:
    """Show the fields that a way to begin needs, and tell what a dropped clip holds."""

    def tell(path: str | None) -> Any:
        if path is None:
            return gr.update(value="", visible=False)
        try:
            text, looks = look_at(Path(path), studio.settings.limits).text(), "ac-help"
        except (AttnctlError, OSError) as error:
            text, looks = told(error), "ac-problem"
        return gr.update(value=f'<p class="{looks}">{escape(text)}</p>', visible=True)

    settings = studio.settings

    def begin(chosen: str, path: str | None, stack: Any, model: str) -> list[Any]:
        is_clip = chosen != WORDS
        wrong_model = (model in settings.clip_models) == is_clip
        fitting = settings.picture_models if is_clip else settings.clip_models
        cards = stack.get("techniques") if isinstance(stack, dict) else None
        now_start, other_start = (START, []) if is_clip else ([], START)
        return [
            *(gr.update(visible=is_clip) for _ in (*_ONLY_CLIP, "plan")),
            gr.update(visible=is_clip and path is not None),
            *(gr.update(visible=not is_clip) for _ in _ONLY_WORDS),
            gr.update(label=_TARGET if is_clip else "It shows"),
            gr.update(value="Edit" if is_clip else "Make"),
            {"techniques": now_start} if cards == other_start else gr.skip(),
            fitting[0] if model in BUNDLED and wrong_model and fitting else gr.skip(),
        ]

    wire_stack("ac-video-techniques", desk["steps"], desk["model"])
    desk["path"].change(tell, [desk["path"]], [desk["told"]], **QUIET)
    follow = [*(desk[name] for name in _ONLY_CLIP), plan, desk["told"]]
    follow += [*(desk[name] for name in _ONLY_WORDS), desk["target"], run, desk["stack"]]
    follow.append(desk["model"])
    given = [desk["begin"], desk["path"], desk["stack"], desk["model"]]
    desk["begin"].change(begin, given, follow, queue=False, **QUIET)
