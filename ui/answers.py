"""What endpoints answer: how a run stands, and why it was refused."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .job import Snapshot


def answer_of(snapshot: Snapshot, recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """Say how a run stands, as plain values."""
    return {
        "state": snapshot.state,
        "ahead": snapshot.ahead,
        "step": snapshot.done,
        "steps": snapshot.total,
        "seconds_left": snapshot.seconds_left,
        "active": list(snapshot.active),
        "recipes": recipes,
    }


def refusal(text: str) -> gr.Error:
    """Say to a program what went wrong."""
    return gr.Error(text, print_exception=False)
