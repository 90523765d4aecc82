"""``attnctl bench edit``: ways to edit pictures, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctl.cli import options
from attnctl.cli.bench_options import OUT, Choice, Resume, load


def edit(
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "shapes",
    tune: Annotated[
        bool, typer.Option("--tune", help="Try settings on tuning edits, and choose among them.")
    ] = False,
    choice: Choice = None,
    count: Annotated[int, typer.Option(min=1, help="Edits a method.")] = 200,
    split: Annotated[
        str | None, typer.Option(help="List of edits [default: validation; with --tune, tuning].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, above 1.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "edit",
    device: options.Device = None,
    resume: Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare ways to edit pictures whose right answer is known: success and preservation."""
    from attnctl.bench.edit import measure as suite
    from attnctl.bench.edit.settings import methods_for
    from attnctl.bench.edit.text import print_edits, save_text
    from attnctl.bench.text import remark

    pipe = load(model, device)
    methods = methods_for(pipe, tune=tune, choice=choice)
    chosen_split = split or ("tuning" if tune else "validation")
    settings = suite.settings_for(pipe, model, count, chosen_split, steps, guidance)
    say = remark(quiet or as_json)
    done = suite.measure(pipe, settings, methods, out, resume=resume, say=say)
    chosen = suite.choose_of(done, methods) if tune else None
    name = f"edit-{Path(model).name}"
    files = {**done.save(name), "text": save_text(done, name, chosen)}
    print_edits(done, files, chosen, as_json=as_json)
