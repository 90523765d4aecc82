"""Commands that measure: each calls a module of ``attnctl.bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctl.cli import options
from attnctl.cli.bench_edit import edit
from attnctl.cli.bench_effect import effect
from attnctl.cli.bench_inversion import inversion
from attnctl.cli.bench_options import (
    OUT,
    BenchRecipes,
    BenchTechniques,
    Choice,
    Objects,
    Prompts,
    Repeats,
    Resume,
    Shown,
    Split,
    TriedHeads,
    TriedNumbers,
    TriedPlaces,
    Tune,
    load,
    read_numbers,
)
from attnctl.cli.bench_sparse import sparse
from attnctl.cli.bench_video import video

app = typer.Typer(
    help="Measure what the techniques do and cost.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def bench() -> None:
    """Measure what the techniques do and cost."""


@app.command()
def steering(
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "shapes",
    technique: BenchTechniques = None,
    recipe: BenchRecipes = None,
    objects: Objects = "2,3",
    count: Prompts = 400,
    split: Split = "validation",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance scale.")] = 5.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "steering",
    device: options.Device = None,
    resume: Resume = False,
    shown: Shown = 16,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Draw the same prompts and seeds with and without techniques, and verify by program."""
    from attnctl.bench import steering as suite
    from attnctl.bench.conditions import read_conditions
    from attnctl.bench.sheets import save_sheets
    from attnctl.bench.text import print_steering, steering_progress

    conditions = read_conditions(technique or [], recipe or [])
    settings = suite.SteeringSettings(
        model, read_numbers(objects), count, split, steps, guidance, batch_size
    )
    pipe = load(model, device)
    with steering_progress(settings, len(conditions), quiet=quiet or as_json) as progress:
        done = suite.measure(
            *(pipe, settings, conditions, out),
            resume=resume,
            on_step=progress.step,
            say=progress.say,
        )
    sheets = save_sheets(done, shown)
    print_steering(done, sheets, as_json=as_json)


@app.command()
def guidance(
    model: Annotated[str, typer.Option(help="Bundled name or folder.")] = "shapes",
    tune: Tune = False,
    choice: Choice = None,
    scale: TriedNumbers = None,
    strength: TriedNumbers = None,
    where: TriedPlaces = None,
    heads: TriedHeads = None,
    other_guidance: TriedNumbers = None,
    objects: Objects = "1,2,3",
    count: Prompts = 167,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="tuning|validation|SEED",
            help="List of prompts [default: validation; with --tune, tuning].",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, above 1.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "guidance",
    device: options.Device = None,
    resume: Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare perturbed guidance with classifier-free guidance: verdicts, distance to scenes."""
    from attnctl.bench.guidance import measure as suite
    from attnctl.bench.guidance.conditions import Asked
    from attnctl.bench.guidance.text import print_guidance
    from attnctl.bench.text import steering_progress

    asked = Asked(tune, choice, scale, strength, where, heads, other_guidance)
    pipe = load(model, device)
    settings = suite.settings_for(
        pipe,
        *(model, read_numbers(objects), count, split or ("tuning" if tune else "validation")),
        *(steps, guidance, batch_size),
    )
    conditions, grid = asked.conditions(pipe)
    with steering_progress(settings, len(conditions), quiet=quiet or as_json) as progress:
        done = suite.measure(
            *(pipe, settings, conditions, out),
            resume=resume,
            on_step=progress.step,
            say=progress.say,
        )
    chosen = suite.choose_of(done, grid) if tune else None
    print_guidance(done, done.save(f"guidance-{Path(model).name}"), chosen, as_json=as_json)


@app.command()
def overhead(
    size: Annotated[str, typer.Option(metavar="sd15|small", help="Network to measure.")] = "sd15",
    repeats: Repeats = 7,
    latents: Annotated[
        int | None, typer.Option(help="Side of the latents in cells [default: 32, small: 16].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare a pipeline with idle techniques, and with heat maps, to the plain one."""
    from attnctl.bench import overhead as suite
    from attnctl.bench.text import print_overhead, remark
    from attnctl.cli.studio import silence_loading

    silence_loading()
    settings = suite.OverheadSettings(size, repeats, latents)
    record = suite.measure(settings, say=remark(quiet or as_json))
    print_overhead(record, out, as_json=as_json)


@app.command("attend-and-excite")
def attend_and_excite(
    network: Annotated[
        str, typer.Option(metavar="tiny|shapes|medium|all", help="Network to measure.")
    ] = "all",
    repeats: Repeats = 5,
    images: Annotated[int, typer.Option(min=1, help="Pictures of a run.")] = 1,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Steps; half of them move the latents [default: 50; tiny: 10, medium: 4].",
        ),
    ] = None,
    scale_factor: Annotated[float, typer.Option(min=0, help="Size of a gradient step.")] = 20.0,
    latents: Annotated[
        int | None,
        typer.Option(min=16, help="Side of the latents in cells [default: the network's own]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare Attend-and-Excite to the deprecated pipeline in diffusers: times and latents."""
    from attnctl.bench import port as suite
    from attnctl.bench.text import print_port, remark
    from attnctl.cli.studio import silence_loading

    silence_loading()
    settings = suite.PortSettings(network, repeats, images, steps, scale_factor, latents=latents)
    record = suite.measure(settings, say=remark(quiet or as_json))
    print_port(record, out, as_json=as_json)


@app.command()
def perturbation(
    network: Annotated[
        str, typer.Option(metavar="sd15|sd3|tiny-unet|tiny", help="Network to measure.")
    ] = "sd15",
    repeats: Repeats = 7,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a run.")] = 1,
    latents: Annotated[
        int | None, typer.Option(help="Side of the latents in cells [default: 32, tiny: 16].")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="float32|bfloat16", help="[default: float32, sd3: bfloat16]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result as JSON.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare what perturbed-attention guidance adds to a plain run: ours and diffusers'."""
    from attnctl.bench import perturbation as suite
    from attnctl.bench.text import print_perturbation, remark
    from attnctl.cli.studio import silence_loading

    silence_loading()
    settings = suite.PerturbationSettings(network, repeats, steps, latents, dtype)
    record = suite.measure(settings, say=remark(quiet or as_json))
    print_perturbation(record, out, as_json=as_json)


app.command()(edit)
app.command()(effect)
app.command()(inversion)
app.command()(sparse)
app.command()(video)
