"""``attnctl edit``: a given picture, changed with words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options

Image = Annotated[Path, typer.Argument(help="The picture to edit.", show_default=False)]
SourceText = Annotated[str, typer.Option("--source", help="What the picture shows.")]
TargetText = Annotated[
    str | None,
    typer.Option(
        "--target", help="What it should show instead [default: the recipe's prompt].",
        show_default=False,
    ),
]  # fmt: skip
Method = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Inversion: auto, ddim, euler, rf-solver, fireflow, rf-inversion; without one: "
        "flow-edit, sdedit, regenerate.",
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(help="Picture that is white where the edit may change something."),
]
Refinements = Annotated[
    int | None,
    typer.Option(help="Fixed-point iterations of each step of a ddim or euler inversion."),
]
Strength = Annotated[
    float | None, typer.Option(help="Share of the steps that sdedit runs [default: 0.6].")
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Also edit without techniques, and with the baselines."),
]


def edit(
    image: Image,
    source: SourceText,
    target: TargetText = None,
    technique: options.Techniques = None,
    model: options.Model = None,
    method: Method = "auto",
    mask: Mask = None,
    recipe: options.RecipeFile = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    size: options.Size = None,
    negative: options.Negative = None,
    refinements: Refinements = None,
    strength: Strength = None,
    out: options.Out = Path("out"),
    compare: Compare = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    kernel: options.Kernel = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Edit a picture; the edit carries its whole recipe, and a sheet shows what changed."""
    from attnctl.cli.edit_order import new_edit_order
    from attnctl.cli.editing import run_edit_order
    from attnctl.cli.order import Machine

    machine = Machine(dtype, device, offload, 1, kernel or "auto")
    fields: dict[str, Any] = {
        "prompt": target, "model": model, "seed": seed, "steps": steps, "guidance": guidance,
        "size": size, "negative": negative,
    }  # fmt: skip
    chosen = {"method": method, "refinements": refinements, "strength": strength}
    order = new_edit_order(
        image, source, fields, technique or [], recipe, machine, chosen,
        mask=mask, out=out, compare=compare,
    )  # fmt: skip
    run_edit_order(order, as_json=as_json, quiet=quiet)
