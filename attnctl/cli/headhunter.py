"""``attnctl headhunter``: search the attention heads that serve an objective best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnctl.cli import options

if TYPE_CHECKING:
    from attnctl.headhunter import Hunted

ObjectiveName = Annotated[
    str,
    typer.Option(
        "--objective",
        metavar="shapes|clip:FOLDER|MODULE:FUNCTION",
        help="What to maximise: the shapes verifier, CLIP score with the model in a folder, or a"
        " function from pictures and prompts to one number each.",
    ),
]
PromptFile = Annotated[
    Path,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="One prompt a line (seeds 0, 1, ...), or YAML with {prompt: ..., seed: ...}.",
    ),
]
Layers = Annotated[
    str, typer.Option(metavar="7-10", help="Layers to search, such as 7-10 or 0+3 [default: all].")
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", "--guidance-scale", help="Guidance scale [default: off; distilled: its own]."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a search that was stopped.")]
Plot = Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the scores (matplotlib).")]


def headhunter(
    objective: ObjectiveName,
    prompts: PromptFile,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "shapes",
    rounds: Annotated[int, typer.Option(help="Rounds; each builds on the ones before.")] = 1,
    per_round: Annotated[int, typer.Option(help="Heads that each round chooses.")] = 24,
    layers: Layers = "",
    scale: Annotated[float, typer.Option(help="Weight of the guidance.")] = 3.0,
    strength: Annotated[float, typer.Option(help="How far heads are pulled, 0 to 1.")] = 1.0,
    target: Annotated[str, typer.Option(help="identity, uniform or query-mean.")] = "identity",
    form: Annotated[str, typer.Option(help="joint, image-rows or image-block.")] = "joint",
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 20,
    guidance: Guidance = None,
    size: options.Size = None,
    batch_size: Annotated[int, typer.Option(help="Pictures made together.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for scores and results.")] = Path("heads-out"),
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    resume: Resume = False,
    plot: Plot = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Search heads for soft-pag; processes under `accelerate launch` or `torchrun` share it."""
    from attnctl.cli.progress import Progress
    from attnctl.headhunter import HeadHunt, HuntSettings, read_prompts

    settings = HuntSettings(
        model, rounds, per_round, layers, scale, strength,
        target, form, steps, guidance, size, batch_size,
    )  # fmt: skip
    asked = read_prompts(prompts)
    pipe = _load(settings, asked[0].text, out, (dtype, device, offload))
    hunt = HeadHunt(pipe, objective, asked, out, settings, resume=resume, plot=plot)
    is_silent = quiet or as_json or not hunt.team.is_first
    with Progress(hunt.total_steps, quiet=is_silent) as progress:
        found = hunt.run(on_step=progress.step, say=progress.say)
    if hunt.team.is_first:
        _print(found, as_json)
    hunt.team.leave()


def _load(
    settings: Any, prompt: str, out: Path, machine: tuple[str | None, str | None, str]
) -> Any:
    from attnctl.cli.order import Machine, Order, check_machine
    from attnctl.cli.studio import load
    from attnctl.headhunter.team import Team
    from attnctl.heads import HeadSet

    dtype, device, offload = machine
    chosen = Machine(dtype, device or Team.join().device, offload)
    check_machine(chosen)
    return load(Order(settings.recipe(prompt, HeadSet(heads=())), chosen, (), out))


def _print(found: Hunted, as_json: bool) -> None:
    from attnctl.cli.tables import print_json, print_table

    files = {name: str(path) for name, path in found.files.items()}
    if as_json:
        print_json({**found.heads.to_dict(), "files": files})
        return
    head = ("place", "layer", "head", "score", "path")
    rows = [
        (place, one.layer, one.head, f"{one.score:.4g}", one.path)
        for place, one in enumerate(found.heads.heads, 1)
    ]
    print_table(head, rows)
    for name, path in files.items():
        typer.echo(f"{name}: {path}")
    set_ = found.heads
    typer.echo(
        f"use it: -t soft-pag:heads={files['heads']},scale={set_.scale:g},target={set_.target},"
        f"form={set_.form}"
    )
