"""The right half of the third tab: what a clip would take, and the clip beside its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from attnctl.pipelines.video_memory import VideoPlan  # pyright: ignore[reportMissingImports]

from ..clip_edits import MadeClip
from ..outputs import Outputs
from ..parts import asset
from ..visit import Visit
from .looking import what_ran


@dataclass(frozen=True, slots=True)
class ClipView:
    """Components that show a plan or a finished clip."""

    plan: Any
    group: Any
    source: Any
    made: Any
    facts: Any
    download: Any
    sheet: Any
    motion: Any

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`values` fills, in its order."""
        return [
            self.plan, self.group, self.source, self.made, self.facts, self.download, self.sheet,
            self.motion,
        ]  # fmt: skip

    @classmethod
    def lay_out(cls) -> ClipView:
        """Make the components; they are hidden until there is a clip."""
        plan = gr.HTML(elem_id="ac-video-plan", visible=False)
        with gr.Column(visible=False, elem_id="ac-video-result") as group:
            with gr.Row(elem_id="ac-video-pair", elem_classes="ac-few"):
                source, made = _player("source"), _player("edit")
            facts = gr.HTML(elem_id="ac-video-facts", js_on_load=asset("pair.js"))
            download = gr.DownloadButton("Download MP4", size="sm", elem_id="ac-video-file")
            sheet, motion = _picture("frames", "sheet"), _picture("motion", "motion")
        return cls(plan, group, source, made, facts, download, sheet, motion)

    def values(self, outputs: Outputs, visit: Visit, result: VideoPlan | MadeClip) -> Sequence[Any]:
        """Values of :attr:`outputs` for what a run gave."""
        if isinstance(result, VideoPlan):
            rest = [gr.skip()] * (len(self.outputs) - 1)
            return [gr.update(value=plan_html(result), visible=True), *rest]
        shown = result.handed_out(outputs, visit)
        return [
            gr.update(value="", visible=False),
            gr.update(visible=True),
            _file(shown.get("source")),
            gr.update(value=str(shown["video"]), label="edit" if "source" in shown else "clip"),
            facts_html(result),
            str(shown["video"]),
            _file(shown["sheet"]),
            _file(shown.get("flow")),
        ]


def plan_html(plan: VideoPlan) -> str:
    """Show what an edit would take."""
    width, height = plan.size
    many = f"{plan.chunks} {'chunk' if plan.chunks == 1 else 'chunks'}"
    rows = [
        (
            "frames",
            f"{plan.frames}, edited at {width}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{height}",
        ),
        ("together", f"{many} of at most {plan.largest} frames, their context included"),
        ("work", f"{plan.evaluations} evaluations of the denoiser, one frame each"),
    ]
    if plan.memory is None:
        rows.append(("memory", f"computed for UNets only, not for {plan.family}"))
    else:
        rows.append(("device memory", f"{_size(plan.memory.device)} for a step"))
        rows.append(("host memory", f"{_size(plan.memory.features)} taken over from the clip"))
    lines = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    return f'<div class="ac-stage ac-plan"><h3>What it takes</h3><dl>{lines}</dl></div>'


def facts_html(made: MadeClip) -> str:
    """Tell what is known of a clip; every text in it is escaped."""
    first, *rest = (escape(fact) for fact in made.facts)
    notes = "".join(f'<p class="ac-help">{note}</p>' for note in rest)
    line = f'<pre class="ac-command">{escape(made.command)}</pre>'
    more = "<details><summary>on the command line</summary>" + line + "</details>"
    command = more if made.command else ""
    return f'<p class="ac-facts"><b>{first}</b></p>{notes}{what_ran(made.summary)}{command}'


def _player(label: str) -> gr.Video:
    return gr.Video(
        label=label, interactive=False, autoplay=True, loop=True, buttons=[],
        elem_id=f"ac-video-{label}", min_width=140,
    )  # fmt: skip


def _picture(label: str, name: str) -> gr.Image:
    return gr.Image(
        label=label, type="filepath", format="png", interactive=False, elem_id=f"ac-video-{name}",
        buttons=["download", "fullscreen"],
    )  # fmt: skip


def _file(path: Any) -> Any:
    """Show a file, or hide its component if there is none."""
    return gr.update(value=None if path is None else str(path), visible=path is not None)


def _size(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
