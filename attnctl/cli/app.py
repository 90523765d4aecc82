"""The command tree. Heavy imports happen inside the commands, so that help answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from attnctl.cli import (
    batch,
    bench,
    compose,
    edit,
    generate,
    headhunter,
    inspecting,
    listing,
    machine,
    ui,
    video,
    video_edit,
    vital_layers,
)

app = typer.Typer(
    name="attnctl",
    help="Training-free attention control for diffusers pipelines.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"attnctl {version('attnctl')}")
        raise typer.Exit


@app.callback()
def attnctl(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Steer and speed up diffusers pipelines without training anything."""


app.command()(generate.generate)
app.command()(edit.edit)
app.command()(compose.compose)
app.command()(video.video)
app.command("video-edit")(video_edit.video_edit)
app.command()(batch.batch)
app.command()(headhunter.headhunter)
app.add_typer(listing.app, name="list")
app.command()(listing.describe)
app.command()(inspecting.inspect)
app.command()(machine.doctor)
app.command("vital-layers")(vital_layers.vital_layers)
app.command()(ui.ui)
app.add_typer(bench.app, name="bench")
