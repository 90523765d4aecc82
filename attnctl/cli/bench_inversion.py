"""``attnctl bench inversion``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options
from attnctl.cli.bench_options import OUT, Resume, load


def inversion(
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "shapes",
    way: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD[+N]",
            help="A way to invert, with N fixed-point iterations a step; may be repeated "
            "[default: plain, refined and second order].",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Rendered pictures.")] = 50,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler.")] = 50,
    prompt: Annotated[
        str, typer.Option(metavar="source|empty", help="Prompt of the inversion.")
    ] = "source",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the pictures.")] = 2026,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures inverted together.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "inversion",
    device: options.Device = None,
    resume: Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Invert rendered pictures and sample them again: what is lost beside the decoder's loss."""
    from attnctl.bench.inversion import InversionSettings, measure, usual_ways
    from attnctl.bench.text import remark
    from attnctl.files import write_text

    pipe = load(model, device)
    ways = tuple(way) if way else usual_ways(pipe)
    settings = InversionSettings(model, ways, count, steps, prompt, seed, batch_size)
    result = measure(pipe, settings, out, resume=resume, remark=remark(quiet or as_json))
    path = write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
    if as_json:
        print(json.dumps(result))  # noqa: T201
    else:
        print_inversion(result, path)


def print_inversion(result: dict[str, Any], path: Path) -> None:
    """Print a table of the ways, and where the result is."""
    from attnctl.cli.tables import print_table

    head = ("way", "evaluations", "PSNR, dB", "decoder alone", "lost", "most", "noise deviation")
    rows = [
        (
            one["way"],
            str(one["evaluations"]),
            f"{one['psnr']:.2f}",
            f"{one['decoder_psnr']:.2f}",
            f"{one['lost_db']:.2f}",
            f"{one['most_lost_db']:.2f}",
            f"{one['noise_deviation']:.2f}",
        )
        for one in result["ways"]
    ]
    print_table(head, rows)
    print(path)  # noqa: T201
