"""``attnctl inspect``: the attention sites of a model, or the recipe inside a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options
from attnctl.cli.tables import print_json, print_table


def inspect(
    target: Annotated[str, typer.Argument(metavar="MODEL|IMAGE", help="A model, or a picture.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show the attention sites of a model, or the recipe inside a picture."""
    if Path(target).is_file() or Path(target).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        _inspect_picture(target, as_json)
    else:
        _inspect_model(target, as_json)


def _inspect_picture(path: str, as_json: bool) -> None:
    from attnctl.imaging import read_record
    from attnctl.yaml_files import write_yaml

    record = read_record(path)
    if as_json:
        print_json(record)
        return
    typer.echo(write_yaml(record["recipe"]).rstrip())
    made = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    typer.echo(f"# made with {made}")


def _inspect_model(model: str, as_json: bool) -> None:
    import attnctl
    from attnctl.cli.studio import silence_loading

    silence_loading()
    pipe = attnctl.load_pipeline(model)
    rows = site_rows(pipe)
    if as_json:
        print_json({"pipeline": type(pipe).__name__, "sites": rows})
        return
    typer.echo(f"{type(pipe).__name__}: {len(rows)} attention sites")
    head = ("index", "kind", "layer", "stage", "level", "heads", "path")
    print_table(head, [[row[name] for name in head] for row in rows])


def site_rows(pipe: Any) -> list[dict[str, Any]]:
    """Describe every attention site of a pipeline's denoisers as plain values."""
    from dataclasses import asdict

    from torch import nn

    from attnctl.families import DENOISER_ATTRIBUTES, find_family
    from attnctl.sites import find_sites

    rows: list[dict[str, Any]] = []
    for name in DENOISER_ATTRIBUTES:
        denoiser = getattr(pipe, name, None)
        if isinstance(denoiser, nn.Module):
            rows += map(asdict, find_sites(name, denoiser, find_family(denoiser)).values())
    return rows
