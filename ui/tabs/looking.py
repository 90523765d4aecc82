"""The right half of the first tab: pictures under a slider, heat maps, and what was made before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from attnctl.errors import AttnctlError

from ..heat import ALL, draw_heat, layer_choices, view
from ..making import told
from ..parts import words as words_part
from ..visit import Shown, Visit


@dataclass(frozen=True, slots=True)
class Looking:
    """Components that show a finished picture."""

    group: Any
    slider: Any
    single: Any
    facts: Any
    file: Any
    use: Any
    heat_group: Any
    sentence: Any
    heat: Any
    layers: Any
    first: Any
    last: Any
    note: Any
    gallery: Any
    key: Any

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`show` fills, in its order."""
        return [
            self.group, self.slider, self.single, self.facts, self.file, self.heat_group,
            self.sentence, self.heat, self.layers, self.first, self.last, self.note,
            self.gallery, self.key,
        ]  # fmt: skip

    @classmethod
    def lay_out(cls) -> Looking:
        """Make the components; everything is hidden until there is a picture."""
        shown: dict[str, Any] = {"visible": False}
        with gr.Column(**shown, elem_id="ac-result") as group:
            slider = gr.ImageSlider(
                label="same seed: plain | with techniques",
                type="pil", format="png", interactive=False, elem_id="ac-slider",
                buttons=["fullscreen"], max_height=460,
            )  # fmt: skip
            single = gr.Image(
                label="picture", type="pil", format="png", interactive=False, elem_id="ac-single",
                buttons=["fullscreen"],
            )  # fmt: skip
            facts = gr.HTML(elem_id="ac-facts")
            with gr.Row(elem_classes="ac-few"):
                file = gr.DownloadButton("Download PNG", size="sm", elem_id="ac-file")
                use = gr.Button("Use these settings", size="sm", elem_id="ac-use")
            with gr.Column(elem_id="ac-heat-group") as heat_group:
                gr.HTML('<p class="ac-caption">Where did a word look? Click it.</p>')
                sentence = words_part("ac-looked", "show where this word looked")
                heat = gr.Image(
                    label="heat map", type="pil", format="png", interactive=False,
                    elem_id="ac-heat", buttons=["fullscreen"], **shown,
                )  # fmt: skip
                note = gr.HTML(elem_id="ac-heat-note")
                layers = gr.Dropdown([ALL], value=ALL, label="Layers", elem_id="ac-layers", **shown)
                with gr.Row(elem_classes="ac-few"):
                    first = _step_slider("From step", "ac-first")
                    last = _step_slider("To step (included)", "ac-last")
            gr.HTML('<p class="ac-caption">Made in this visit. Click one to see it again.</p>')
            gallery = gr.Gallery(
                show_label=False, columns=4, allow_preview=False, height="auto",
                object_fit="contain",
                fit_columns=False, elem_id="ac-gallery", interactive=False, buttons=[],
            )  # fmt: skip
            key = gr.State(None)
        return cls(
            group, slider, single, facts, file, use, heat_group, sentence, heat, layers, first,
            last, note, gallery, key,
        )  # fmt: skip

    def show(self, visit: Visit, shown: Shown | None) -> list[Any]:
        """Values of :attr:`outputs` for one picture; without one, everything stays as it is."""
        if shown is None:
            return [gr.skip()] * len(self.outputs)
        has_maps = shown.maps is not None
        last_step = max((shown.recipe.steps or 1) - 1, 0)
        choices = layer_choices(shown.maps) if shown.maps is not None else [(ALL, ALL)]
        by_step = has_maps and last_step > 0 and shown.has_steps
        pair = None if shown.plain is None else (view(shown.plain), view(shown.image))
        step: dict[str, Any] = {"minimum": 0, "maximum": max(last_step, 1), "visible": by_step}
        return [
            gr.update(visible=True),
            gr.update(value=pair, visible=pair is not None),
            gr.update(value=None if pair else view(shown.image), visible=pair is None),
            _facts(shown),
            str(shown.file),
            gr.update(visible=True),
            {"text": str(shown.recipe.prompt), "chosen": []},
            gr.update(value=None, visible=False),
            gr.update(choices=choices, value=ALL, visible=has_maps),
            gr.update(value=0, **step),
            gr.update(value=last_step, **step),
            "" if has_maps else _NO_MAPS,
            [(str(one.file), f"seed {one.recipe.seed}") for one in visit.shown],
            shown.key,
        ]

    def wire(
        self, visit: Any, settings_of: Callable[[int | None, Visit], list[Any]], form: list[Any]
    ) -> None:
        """Tell what happens on a click."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        def look(
            now: Visit, key: int | None, sentence: Any, layers: str, first: float, last: float
        ) -> tuple[Any, str]:
            chosen = sentence.get("chosen") if isinstance(sentence, dict) else None
            if not chosen:
                return gr.skip(), ""
            shown = now.find(key)
            steps = (int(first), int(last)) if shown is not None and shown.has_steps else (0, None)
            try:
                image = draw_heat(shown, str(chosen[0])[:200], layers, *steps)
            except AttnctlError as error:
                return gr.update(visible=False), f'<p class="ac-problem">{escape(told(error))}</p>'
            return gr.update(value=image, visible=True, label=f"where “{chosen[0]}” looked"), ""

        def pick(now: Visit, key: int | None, sentence: Any, *rest: Any) -> tuple[Any, ...]:
            picked = sentence.get("picked") if isinstance(sentence, dict) else None
            chosen = {**sentence, "chosen": [picked]} if picked else {}
            return (chosen, *look(now, key, chosen, *rest))

        def select(now: Visit, event: gr.SelectData) -> list[Any]:
            index = event.index if isinstance(event.index, int) else -1
            known = 0 <= index < len(now.shown)
            return self.show(now, now.shown[index] if known else None)

        def use(now: Visit, key: int | None) -> list[Any]:
            return settings_of(key, now)

        asked = [visit, self.key, self.sentence, self.layers, self.first, self.last]
        self.sentence.pick(pick, asked, [self.sentence, self.heat, self.note], **quiet)
        changes = [self.layers.input, self.first.input, self.last.input]
        seen = [self.heat, self.note]
        gr.on(changes, look, asked, seen, trigger_mode="always_last", **quiet)
        self.gallery.select(select, [visit], self.outputs, **quiet)
        self.use.click(use, [visit, self.key], form, queue=False, **quiet)


def _step_slider(label: str, name: str) -> gr.Slider:
    return gr.Slider(0, 1, 0, step=1, label=label, elem_id=name, visible=False)


_NO_MAPS = (
    '<p class="ac-help">No maps of this picture are in memory: switch “Heat maps” on, and make '
    "it again.</p>"
)


def _facts(shown: Shown) -> str:
    return f'<p class="ac-facts"><b>{escape(shown.caption)}</b></p>{what_ran(shown.summary)}'


def what_ran(summary: str) -> str:
    """Write a report so that it opens on a click; empty without one."""
    if not summary:
        return ""
    return f"<details><summary>what ran</summary><pre>{escape(summary)}</pre></details>"
