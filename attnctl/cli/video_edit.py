"""``attnctl video-edit``: a clip from a file, edited with words, to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options

VideoFile = Annotated[
    Path,
    typer.Argument(
        metavar="VIDEO", help="A video file, GIF, WebP, or a folder of frames.", show_default=False
    ),
]
SourceText = Annotated[str, typer.Option("--source", help="What the clip shows.")]
TargetText = Annotated[str, typer.Option("--target", help="What it should show instead.")]
FramesText = Annotated[
    str | None, typer.Option("--frames", metavar="A-B", help="Frames A to B - 1 [default: all].")
]
Stride = Annotated[int, typer.Option(min=1, help="Take every N-th frame.")]
Rate = Annotated[
    str | None,
    typer.Option(metavar="FPS", help="Resample to this rate, such as 12 or 24000/1001."),
]
Chunk = Annotated[
    int, typer.Option(min=1, help="Frames that are edited together; memory grows with them.")
]
Flow = Annotated[
    str,
    typer.Option(
        metavar="NAME|FILE",
        help="Motion of the clip: dis, farneback, raft, none, or a file (.npz, .flo).",
    ),
]
Inject = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="flatten takes over features of the clip until this part of the run."
    ),
]
Gif = Annotated[bool, typer.Option("--gif", help="Also write a GIF.")]
Silent = Annotated[bool, typer.Option("--no-audio", help="Leave the sound out.")]
Plan = Annotated[
    bool, typer.Option("--plan", help="Show chunks, size and memory; compute nothing.")
]


def video_edit(
    video: VideoFile,
    source: SourceText,
    target: TargetText,
    technique: options.Techniques = None,
    model: options.Model = None,
    frames: FramesText = None,
    stride: Stride = 1,
    rate: Rate = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    negative: options.Negative = None,
    chunk: Chunk = 16,
    flow: Flow = "dis",
    inject: Inject = 0.8,
    out: options.Out = Path("out"),
    gif: Gif = False,
    no_audio: Silent = False,
    plan: Plan = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Edit a clip with a picture model; run again after a stop, and it goes on where it was."""
    from attnctl.cli.order import Machine
    from attnctl.cli.video_editing import run_video_order
    from attnctl.cli.video_order import new_video_order

    fields: dict[str, Any] = {
        "prompt": target, "model": model, "steps": steps, "guidance": guidance,
        "size": size, "negative": negative,
    }  # fmt: skip
    order = new_video_order(
        video, source, fields, technique or [], Machine(dtype, device, offload),
        frames=frames, stride=stride, rate=rate, chunk=chunk, flow=flow, inject=inject,
        out=out, gif=gif, sound=not no_audio,
    )  # fmt: skip
    run_video_order(order, plan=plan, as_json=as_json, quiet=quiet)
