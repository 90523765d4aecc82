"""``attnctl list`` and ``attnctl describe``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from attnctl.cli import options
from attnctl.cli.tables import print_json, print_table

app = typer.Typer(
    help="Show what there is: techniques, families, kernels, models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("techniques")
def list_techniques(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show every technique."""
    import attnctl

    records = attnctl.list_techniques()
    if as_json:
        print_json({"techniques": [plain(record) for record in records]})
        return
    print_table(("technique", "what it does"), [(r.name, r.summary) for r in records])


@app.command("families")
def list_families(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show every model family whose layout is known."""
    import attnctl

    rows = [
        {"family": f.name, "classes": list(f.classes), "denoisers": list(f.denoisers)}
        for f in attnctl.list_families()
    ]
    if as_json:
        print_json({"families": rows})
        return
    shown = [(row["family"], ", ".join(row["classes"])) for row in rows]
    print_table(("family", "denoiser classes"), shown)


@app.command("kernels")
def list_kernels(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show every attention kernel, and why one is missing here."""
    rows = kernel_rows()
    if as_json:
        print_json({"kernels": rows})
        return
    shown = [(row["kernel"], row["summary"], row["missing"] or "yes") for row in rows]
    print_table(("kernel", "what it is", "usable here"), shown)


@app.command("models")
def list_models(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show the bundled models; hub ids and local folders work too."""
    import json
    from importlib.resources import files

    rows: list[dict[str, str]] = []
    folder = files("attnctl.shapes") / "models"
    for entry in sorted(folder.iterdir(), key=lambda e: e.name) if folder.is_dir() else []:
        index = entry / "model_index.json"
        if index.is_file():
            pipeline = json.loads(index.read_text("utf-8")).get("_class_name", "")
            rows.append({"model": entry.name, "pipeline": pipeline})
    if as_json:
        print_json({"models": rows})
        return
    print_table(("model", "pipeline"), [(row["model"], row["pipeline"]) for row in rows])


def describe(
    name: Annotated[str, typer.Argument(help="Name of a technique.")],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a technique does, its parameters, and what it needs."""
    import attnctl
    from attnctl import registry

    registry.find_technique(name)
    record = next(r for r in attnctl.list_techniques() if r.name == name)
    if as_json:
        print_json(plain(record))
        return
    for title, text in (
        (f"{record.name} ({record.class_name})", record.summary),
        ("Works on", record.families),
        ("Needs", record.needs),
        ("Follows", record.reference),
    ):
        typer.echo(f"{title}: {text}")
    typer.echo("")
    rows = [(p.name, p.default, p.help) for p in record.parameters]
    print_table(("parameter", "default", "meaning"), rows)


def kernel_rows() -> list[dict[str, Any]]:
    """Plain values of every kernel: name, summary, and why it is missing here, if it is."""
    import attnctl

    return [
        {"kernel": k.name, "summary": k.summary, "missing": k.why_missing()}
        for k in attnctl.list_kernels()
    ]


def plain(record: Any) -> dict[str, Any]:
    """Turn a record into plain values."""
    from dataclasses import asdict

    return asdict(record)
