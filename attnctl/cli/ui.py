"""``attnctl ui``: the studio, a web page."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from attnctl.cli import options

Host = Annotated[str, typer.Option(help="Address to listen on; others than this need --auth.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")]
Share = Annotated[bool, typer.Option("--share", help="Open a public link; needs --auth.")]
Auth = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:PASSWORD",
        envvar="ATTNCTL_UI_AUTH",
        help="Who may come in; may be repeated. Better in the variable than on the command line.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", metavar="MODEL", help="A model to offer; may be repeated [default: bundled]."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the pictures.")]
Presets = Annotated[Path | None, typer.Option(help="Folder with more recipes to start from.")]


def ui(
    host: Host = "127.0.0.1",
    port: Port = 7860,
    share: Share = False,
    auth: Auth = None,
    model: Models = None,
    out: Out = Path("studio-out"),
    presets: Presets = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    offload: options.Offload = "none",
    kernel: options.Kernel = None,
    debug: options.Debug = False,
) -> None:
    """Open the studio: a page to steer attention, compare, and see where words look."""
    from attnctl.cli.order import Machine, check_machine
    from attnctl.cli.studio import silence_loading
    from attnctl.errors import SettingError
    from attnctl.ui import (  # pyright: ignore[reportMissingImports]
        BUNDLED_MODELS,
        StudioSettings,
        serve,
    )

    machine = Machine(dtype, device, offload, 1, kernel or "auto")
    check_machine(machine)
    if presets is not None and not presets.is_dir():
        raise SettingError(f"--presets {str(presets)!r} is no folder")
    settings = StudioSettings(
        models=tuple(model or BUNDLED_MODELS),
        out=out,
        host=host,
        port=port,
        share=share,
        users=tuple(_user(text) for text in auth or []),
        presets=presets,
        machine=machine,
    )
    silence_loading()
    _stay(serve(settings), out)


def _stay(running: Any, out: Path) -> None:
    """Serve until Ctrl-C."""
    print(f"studio: {running.url}  (Ctrl-C ends it; pictures go to {out})", file=sys.stderr)  # noqa: T201
    try:
        threading.Event().wait()
    finally:
        running.close()


def _user(text: str) -> tuple[str, str]:
    name, _, password = text.partition(":")
    return name, password
