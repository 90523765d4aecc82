"""Options that several commands share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[str | None, typer.Argument(help="What the picture shows.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(help="Hub id, local folder or bundled name [default: shapes].", metavar="MODEL"),
]
Techniques = Annotated[
    list[str] | None,
    typer.Option(
        "-t",
        "--technique",
        metavar="NAME[:key=value,...]",
        help="Attach a technique; may be repeated. Lists are written a+b.",
    ),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", help="Read a recipe; other options override it.")
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the first picture [default: random].", show_default=False),
]
Count = Annotated[int | None, typer.Option(help="Pictures to make [default: 1].")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps [default: the pipeline's].")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale [default: the pipeline's].")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="Width x height in pixels.")]
Negative = Annotated[str | None, typer.Option(help="What the picture should not show.")]
Scheduler = Annotated[
    str | None, typer.Option(help="Class name of a diffusers scheduler, such as DDIMScheduler.")
]
Out = Annotated[Path, typer.Option(help="Folder for the pictures; made when there is one.")]
Grid = Annotated[bool, typer.Option("--grid", help="Also put all pictures on one sheet.")]
Heatmaps = Annotated[
    str | None, typer.Option(metavar="WORD,WORD", help="Also show where these words looked.")
]
Compare = Annotated[
    bool,
    typer.Option("--compare", help="Also make the same seeds without techniques, and a sheet."),
]
Source = Annotated[
    Path | None, typer.Option("--from", metavar="IMAGE.png", help="Make a picture again.")
]
Dtype = Annotated[str | None, typer.Option(metavar="auto|fp32|fp16|bf16", help="Number format.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps [default: the best].")]
Offload = Annotated[str, typer.Option(metavar="none|model|sequential", help="Save GPU memory.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures made together.")]
Kernel = Annotated[str | None, typer.Option(help="Attention kernel [default: auto].")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
