"""``attnctl bench effect``: the table that says which steering works."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnctl.cli import options
from attnctl.cli.bench_options import OUT, Objects, Resume, load, read_numbers

Wanted = list[str] | None


def effect(
    model: Annotated[
        str, typer.Option(metavar="shapes|shapes-mmdit|shapes-motion|all", help="Bundled model.")
    ] = "all",
    suite: Annotated[
        Wanted,
        typer.Option(
            metavar="pictures|edits|scenes|characters|clips|motion|transfer|long|fast",
            help="A part; may be repeated [default: all].",
        ),
    ] = None,
    technique: Annotated[
        Wanted,
        typer.Option(
            "-t",
            "--technique",
            metavar="NAME",
            help="A technique, or a recipe such as attend-and-excite+soft-pag; may be repeated"
            " [default: all].",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(metavar="validation|SEED", help="List of prompts, edits and clips.")
    ] = "validation",
    objects: Objects = "2,3",
    count: Annotated[int, typer.Option(min=1, help="Prompts for each number of objects.")] = 20,
    edits: Annotated[int, typer.Option(min=1, help="Edits a method.")] = 20,
    cases: Annotated[
        int, typer.Option(min=1, help="Cases of given scenes, and of given characters.")
    ] = 8,
    clips: Annotated[int, typer.Option(min=1, help="Clips a condition.")] = 4,
    frames: Annotated[
        int, typer.Option(min=2, help="Frames of a clip, and of a part of a long one.")
    ] = 16,
    fast: Annotated[
        int, typer.Option(min=1, help="Prompts for each number of objects, of fast attention.")
    ] = 2,
    repeats: Annotated[
        int, typer.Option(min=0, help="Timed rounds of fast attention; 0 leaves them out.")
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps [default: the model's own].")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures made together.")] = 8,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Choose settings of pictures on tuning prompts: choice.json."),
    ] = False,
    choice: Annotated[
        Path | None, typer.Option(help="Settings that --tune chose [default: built in].")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = OUT / "effect",
    device: options.Device = None,
    resume: Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure every technique beside what it claims to be better than: one table for all."""
    from attnctl.bench.effect import table as suites
    from attnctl.bench.effect.parts import EffectSettings
    from attnctl.bench.effect.settings import MODELS, read_choice
    from attnctl.bench.effect.text import print_effect, save_text
    from attnctl.bench.effect.tuning import choose_settings, print_choice
    from attnctl.bench.text import remark

    models = MODELS if model == "all" else (model,)
    asked = suites.Asked(tuple(suite or ()), tuple(technique or ()), models)
    settings = EffectSettings(
        split=split,
        count=count,
        objects=read_numbers(objects),
        edits=edits,
        cases=cases,
        clips=clips,
        frames=frames,
        fast=fast,
        repeats=repeats,
        steps=steps,
        batch_size=batch_size,
        choice={} if choice is None else read_choice(choice),
    )
    say = remark(quiet or as_json)
    if tune:
        chosen = choose_settings(
            *(settings, asked, out, lambda name: load(name, device)), resume=resume, say=say
        )
        print_choice(chosen, as_json=as_json)
        return
    done = suites.measure(
        *(settings, asked, out, lambda name: load(name, device)), resume=resume, say=say
    )
    print_effect(done, save_text(done), as_json=as_json)
