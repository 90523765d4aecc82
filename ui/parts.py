"""Small components of our own: words that can be clicked, and the stack of techniques."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from .controls import describe_all
from .timeline import check_stack

_ASSETS = Path(__file__).parent / "assets"
Suggested = dict[str, dict[str, dict[str, Any]]]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Options of the page's own events: no spinner, and no endpoint."""

_TELL_STACK = """(steps, model) => {
  document.dispatchEvent(new CustomEvent("EVENT", {detail: {steps, model}}));
}"""
_MOUNT = '<div class="ac-mount"></div>'


def asset(*names: str) -> str:
    """Read files of the page and join them."""
    return "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in names)


def desk_column() -> gr.Column:
    """Left half of a tab: what is asked for."""
    return gr.Column(scale=5, min_width=340, elem_classes="ac-desk")


def view_column() -> gr.Column:
    """Right half of a tab: what comes out."""
    return gr.Column(scale=6, min_width=340, elem_classes="ac-view")


def words(name: str, hint: str, text: str = "") -> gr.HTML:
    """Make a sentence whose words are buttons; its event is ``pick``.

    Args:
        name: Id on the page.
        hint: What a click does.
        text: The sentence.
    """
    value: Any = {"text": text, "chosen": []}
    return gr.HTML(
        value,
        html_template=_MOUNT,
        js_on_load=asset("dom.js", "words.js"),
        elem_id=name,
        elem_classes="ac-words",
        hint=hint,
    )


def guidance_field(name: str) -> gr.Textbox:
    """Ask for a guidance scale that may be left to the model."""
    return gr.Textbox(label="Guidance scale", placeholder="the model's own", elem_id=name)


def subjects_script(suggested: Suggested) -> str:
    """Write what a click on a word of the prompt does: ``(sentence, stack) => stack``."""
    wordy = [
        record["name"]
        for record in describe_all()
        if any(control["name"] == "subjects" for control in record["controls"])
    ]
    script = asset("subjects.js").replace('"SUGGESTED"', json.dumps(suggested))
    return script.replace('"WORDY"', json.dumps(wordy))


def stack(
    name: str,
    model: str,
    steps: int,
    suggested: Suggested,
    *,
    offered: str = "for_pictures",
    start: Sequence[dict[str, Any]] = (),
) -> gr.HTML:
    """Make the stack of techniques.

    Args:
        name: Id on the page.
        model: Model that is chosen at first.
        steps: Denoising steps at first.
        suggested: Settings that a technique starts with, by model and technique.
        offered: Which techniques can be added: ``for_pictures``, ``for_edits`` or ``for_clips``.
        start: Cards that are there at first.
    """
    value: Any = {"techniques": list(start)}
    return gr.HTML(
        value,
        html_template=_MOUNT,
        js_on_load=asset("dom.js", "stack.js"),
        elem_id=name,
        elem_classes="ac-stack",
        server_functions=[check_stack],
        records=describe_all(),
        suggested=suggested,
        model=model,
        steps=steps,
        offered=offered,
        follows=_event(name),
    )


def wire_stack(name: str, steps: Any, model: Any) -> None:
    """Let a stack's timeline follow the steps, and its suggestions the model; in the browser."""
    script = _TELL_STACK.replace('"EVENT"', json.dumps(_event(name)))
    gr.on([steps.change, model.change], None, [steps, model], None, js=script, **QUIET)


def _event(name: str) -> str:
    return f"attnctl-{name}"
