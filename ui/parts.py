"""Small components of our own: words that can be clicked, and the stack of techniques."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from .controls import describe_all
from .timeline import check_stack

_ASSETS = Path(__file__).parent / "assets"
_MOUNT = '<div class="ac-mount"></div>'


def asset(*names: str) -> str:
    """Read files of the page and join them."""
    return "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in names)


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


def stack(name: str) -> gr.HTML:
    """Make the stack of techniques; its event is ``wanted``."""
    value: Any = {"techniques": []}
    return gr.HTML(
        value,
        html_template=_MOUNT,
        js_on_load=asset("dom.js", "stack.js"),
        elem_id=name,
        elem_classes="ac-stack",
        server_functions=[check_stack],
        records=describe_all(),
    )
