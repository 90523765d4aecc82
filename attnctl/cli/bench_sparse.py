"""``attnctl bench sparse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctl.cli import options
from attnctl.cli.bench_options import (
    OUT,
    BenchRecipes,
    BenchTechniques,
    Objects,
    Resume,
    Split,
    load,
    read_numbers,
)


def sparse(
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "shapes",
    technique: BenchTechniques = None,
    recipe: BenchRecipes = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="re-ttention|statistics|masks|tokens|peers",
            help="Settings to compare; may be repeated [default: all but peers, without -t].",
        ),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(help="A share that sweeps leave out; may be repeated [default: four]."),
    ] = None,
    refresh: Annotated[
        list[int] | None,
        typer.Option(min=1, help="An interval of the re-ttention sweep [default: 5 and 3]."),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(metavar="50%-", help="Steps of the re-ttention sweep [default: its own]."),
    ] = None,
    least_tokens: Annotated[
        int, typer.Option(min=0, help="Sweeps leave sites with fewer image tokens dense.")
    ] = 1024,
    objects: Objects = "1,2,3",
    count: Annotated[int, typer.Option(min=1, help="Prompts for each number of objects.")] = 4,
    split: Split = "validation",
    size: Annotated[int, typer.Option(min=16, help="Side of the pictures in pixels.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 5.0,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="sd15|sd15-finest|sd3|medium|tiny",
            help="Random network to time instead of the model.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=0, help="Timed rounds; 0 leaves times out.")] = 5,
    timed_steps: Annotated[int, typer.Option(min=1, help="Steps of a timed run.")] = 5,
    latents: Annotated[
        int | None, typer.Option(help="Side of the timed latents in cells [default: its own].")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "sparse",
    device: options.Device = None,
    resume: Resume = False,
    shown: Annotated[int, typer.Option("--sheet", min=1, help="Prompts on the sheet.")] = 6,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare fast attention with dense: nearness of pictures and layers, speed, memory."""
    from attnctl.bench.sparse import measure as suite
    from attnctl.bench.sparse.conditions import choose_ways
    from attnctl.bench.sparse.speed import SpeedSettings
    from attnctl.bench.sparse.text import print_sparse
    from attnctl.bench.steering import SteeringSettings
    from attnctl.bench.text import remark

    drawing = SteeringSettings(model, read_numbers(objects), count, split, steps, guidance, 1)
    speed = SpeedSettings(network, repeats, timed_steps, latents)
    ways = choose_ways(
        *(technique or [], recipe or [], sweep or [], sparsity or [], refresh or []),
        window=window,
        steps=steps,
        least_tokens=least_tokens,
    )
    done = suite.measure(
        *(load(model, device), suite.SparseSettings(drawing, size, speed), ways, out),
        resume=resume,
        say=remark(quiet or as_json),
    )
    print_sparse(done, shown, as_json=as_json)
