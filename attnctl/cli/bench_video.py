"""``attnctl bench video``: ways to keep the frames of an edited clip together, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctl.cli import options
from attnctl.cli.bench_options import OUT, Resume, load


def video(
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "shapes",
    technique: Annotated[
        list[str] | None,
        typer.Option(
            "-t",
            "--technique",
            metavar="NAME[:key=value,...]",
            help="One more condition, with word-swap and estimated motion; may be repeated.",
        ),
    ] = None,
    inject: Annotated[
        float, typer.Option(min=0, max=1, help="Injection in the conditions of -t.")
    ] = 0.8,
    count: Annotated[int, typer.Option(min=1, help="Clips a condition.")] = 20,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip.")] = 16,
    split: Annotated[str, typer.Option(help="Name of the list of clips.")] = "validation",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale of the edit.")] = 5.0,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "video",
    device: options.Device = None,
    resume: Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Recolour an object of rendered clips: warping error by the true motion, and success."""
    from attnctl.bench.text import remark
    from attnctl.bench.video import measure as suite
    from attnctl.bench.video.cases import CONDITIONS, WORDS, VideoCondition
    from attnctl.bench.video.text import print_videos, save_pictures
    from attnctl.cli.technique_text import read_technique

    more = [VideoCondition(t, (WORDS, read_technique(t)), "dis", inject) for t in technique or []]
    pipe = load(model, device)
    settings = suite.VideoBenchSettings(model, count, frames, split, steps, guidance)
    done = suite.measure(
        *(pipe, settings, [*CONDITIONS, *more], out),
        resume=resume,
        say=remark(quiet or as_json),
    )
    name = f"video-{Path(model).name}"
    files = {"result": done.save(name), **save_pictures(done, name)}
    print_videos(done, files, as_json=as_json)
