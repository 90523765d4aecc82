"""Options that commands of ``attnctl bench`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

OUT = Path("bench-out")

BenchTechniques = Annotated[
    list[str] | None,
    typer.Option(
        "-t",
        "--technique",
        metavar="NAME[:key=value,...]",
        help="A condition; may be repeated. Without subjects=, each prompt's nouns are taken;"
        " subject=colour takes its colour words, subject=both both.",
    ),
]
BenchRecipes = Annotated[
    list[Path] | None,
    typer.Option("--recipe", help="A condition with the techniques of a recipe; may be repeated."),
]
Objects = Annotated[str, typer.Option(metavar="N,N", help="Objects a prompt: 1 to 3.")]
Prompts = Annotated[int, typer.Option(min=1, help="Prompts for each number of objects.")]
Split = Annotated[str, typer.Option(metavar="tuning|validation|SEED", help="List of prompts.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")]
Shown = Annotated[int, typer.Option("--sheet", min=1, help="Prompts on the contact sheet.")]
Tune = Annotated[
    bool, typer.Option("--tune", help="Try scales, strengths and places, and choose among them.")
]
Choice = Annotated[
    Path | None,
    typer.Option(help="Settings to compare, as a --tune run wrote them [default: built in]."),
]
TriedNumbers = Annotated[
    list[float] | None, typer.Option(help="A value for --tune to try; may be repeated.")
]
TriedPlaces = Annotated[
    list[str] | None,
    typer.Option(help="Sites, perhaps heads, for --tune to try; may be repeated."),
]
TriedHeads = Annotated[
    list[Path] | None,
    typer.Option(help="File of a head set for --tune to try; may be repeated."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Rounds; in each, both sides have a turn.")]


def read_numbers(text: str) -> tuple[int, ...]:
    """Read ``--objects``.

    Raises:
        SettingError: it is no list of numbers.
    """
    from attnctl.errors import SettingError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise SettingError(f"--objects {text!r} must be numbers from 1 to 3, such as 2,3")
    return tuple(int(part) for part in parts)


def load(model: str, device: str | None) -> Any:
    """Load a pipeline without progress bars."""
    import attnctl
    from attnctl.cli.order import check_device
    from attnctl.cli.studio import silence_loading

    if device is not None:
        check_device(device)
    silence_loading()
    pipe = attnctl.load_pipeline(model, device=device or "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe
