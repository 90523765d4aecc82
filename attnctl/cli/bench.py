"""Commands that measure: each calls a module of ``attnctl.bench``."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Measure what the techniques do and cost.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def bench() -> None:
    """Measure what the techniques do and cost."""
