"""``attnctl compose``: a given object, pasted into a given background."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options

Background = Annotated[Path, typer.Argument(help="Picture of the scene.", show_default=False)]
Object = Annotated[Path, typer.Option("--object", help="Picture of the object.")]
Box = Annotated[
    str,
    typer.Option(
        metavar="x0,y0,x1,y1",
        help="Where the object goes, in parts of the scene from its upper left corner.",
    ),
]
Prompt = Annotated[str, typer.Option(help="What the composed picture shows.")]
Words = Annotated[
    str, typer.Option(metavar="WORDS", help="The object's words in the prompt, commas between.")
]
Mask = Annotated[
    Path | None,
    typer.Option(help="Picture that is white where --object shows it [default: everywhere]."),
]
Domain = Annotated[
    str,
    typer.Option(metavar="NAME", help="Style of the scene: same, painting, cartoon, sketch."),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of the noise in the box [default: 0].", show_default=False)
]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler [default: 20].")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale [default: the domain's].")]
Infuse = Annotated[
    float | None, typer.Option(help="Share of the steps with infusion [default: the domain's].")
]
Paste = Annotated[
    float | None,
    typer.Option(help="Share of the steps with the object as it is [default: the domain's]."),
]
Refinements = Annotated[
    int | None, typer.Option(help="Fixed-point iterations of each step of the inversion.")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also compose without both techniques, for the sheet.")
]


def compose(
    background: Background,
    subject: Object,
    box: Box,
    prompt: Prompt,
    words: Words,
    mask: Mask = None,
    domain: Domain = "same",
    technique: options.Techniques = None,
    model: options.Model = None,
    seed: Seed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    infuse: Infuse = None,
    paste: Paste = None,
    size: options.Size = None,
    negative: options.Negative = None,
    refinements: Refinements = None,
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
    """Compose an object into a scene, without training; a sheet shows how it came about."""
    from attnctl.cli.compose_order import new_compose_order
    from attnctl.cli.composing import run_compose_order
    from attnctl.cli.order import Machine

    machine = Machine(dtype, device, offload, 1, kernel or "auto")
    fields: dict[str, Any] = {
        "prompt": prompt, "model": model, "seed": seed, "steps": steps, "guidance": guidance,
        "size": size, "negative": negative,
    }  # fmt: skip
    chosen = {"domain": domain, "infuse": infuse, "paste": paste, "refinements": refinements}
    order = new_compose_order(
        background, subject, mask, box, words, fields, technique or [], machine, chosen,
        out=out, compare=compare,
    )  # fmt: skip
    run_compose_order(order, as_json=as_json, quiet=quiet)
