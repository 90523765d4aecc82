"""``attnctl vital-layers``: search the layers that a transformer's pictures depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options

PromptFile = Annotated[
    Path,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="One prompt a line (seeds 0, 1, ...), or YAML with {prompt: ..., seed: ...}.",
    ),
]
SimilarityName = Annotated[
    str,
    typer.Option(
        metavar="shapes|dino:FOLDER|MODULE:FUNCTION",
        help="What compares pictures: features of the shapes world, a DINO model in a folder, or a"
        " function from two lists of pictures to one number a pair.",
    ),
]
Top = Annotated[int | None, typer.Option(min=0, help="Layers to choose [default: 9 of 57].")]
Threshold = Annotated[float | None, typer.Option(help="Choose layers of at least this vitality.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a search that was stopped.")]


def vital_layers(
    prompts: PromptFile,
    model: Annotated[str, typer.Option(help="Bundled name, folder or hub id.")] = "shapes-mmdit",
    similarity: SimilarityName = "shapes",
    top: Top = None,
    threshold: Threshold = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 15,
    guidance: options.Guidance = None,
    size: options.Size = None,
    batch_size: options.BatchSize = 1,
    out: Annotated[Path, typer.Option(help="Folder for pictures and results.")] = Path(
        "vital-layers-out"
    ),
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    resume: Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Search the vital layers of a transformer, for stable-flow; may be stopped and resumed."""
    from attnctl.cli.order import Machine, Order, check_machine
    from attnctl.cli.progress import Progress
    from attnctl.cli.studio import load
    from attnctl.headhunter import read_prompts
    from attnctl.vital_layers.bypass_search import SearchSettings, search

    settings = SearchSettings(model, top, threshold, steps, guidance, size, batch_size)
    asked = read_prompts(prompts)
    machine = Machine(dtype, device, offload)
    check_machine(machine)
    pipe = load(Order(settings.recipe(asked[0].text), machine, (), out))
    with Progress(0, quiet=quiet or as_json) as progress:
        found = search(
            pipe, similarity, asked, out, settings,
            resume=resume, on_step=progress.step, say=progress.say,
        )  # fmt: skip
    _print(found, as_json)


def _print(found: Any, as_json: bool) -> None:
    from attnctl.cli.tables import print_json, print_table

    files = {name: str(path) for name, path in found.files.items()}
    if as_json:
        print_json({**found.layers.model_dump(mode="json", exclude_none=True), "files": files})
        return
    vital = set(found.layers.layers)
    rows = [
        (layer, f"{value:.4f}", "vital" if layer in vital else "")
        for layer, value in enumerate(found.layers.vitality)
    ]
    print_table(("layer", "vitality", ""), rows)
    for name, path in files.items():
        typer.echo(f"{name}: {path}")
    typer.echo(f"use it: -t stable-flow:layers={files['layers']}")
