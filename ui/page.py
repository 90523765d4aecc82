"""The page: its tabs, its looks, and the endpoints for programs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import api
from .parts import asset
from .studio import Studio
from .tabs import create, edit, video
from .visit import Visit

TITLE = "attnctl studio"
TABS: dict[str, Any] = {"Create": create, "Edit": edit, "Video": video}
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONO = ["ui-monospace", "monospace"]
_HEADER = (
    '<header class="ac-header"><h1>attnctl <span>studio</span></h1>'
    "<p>Steer what attention does, and see where each word looks.</p></header>"
)


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page of a studio; every session gets its own :class:`Visit`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        visit = gr.State(Visit(), delete_callback=_leave(studio))
        api.build(studio, visit)  # first: its endpoints take the plain names
        gr.HTML(_HEADER)
        with gr.Tabs(elem_id="ac-tabs"):
            for title, tab in TABS.items():
                with gr.Tab(title, id=title.lower()):
                    tab.build(studio, visit)
    return page


def looks() -> dict[str, Any]:
    """Theme and style sheet; fonts are those of the visitor's machine, nothing is fetched."""
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO,
        radius_size=gr.themes.sizes.radius_md,
    )  # fmt: skip
    return {"theme": theme, "css": asset("studio.css")}


def _leave(studio: Studio) -> Any:
    def forget(visit: Visit) -> None:
        if visit.job is not None:
            studio.engine.stop(visit.job)
        for file in (*(shown.file for shown in visit.shown), *visit.files):
            file.unlink(missing_ok=True)

    return forget
