"""Carry out a composition: load the pipeline, compose, save, draw the sheet, tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.journal import key_of
from attnctl.cli.compose_order import ComposeOrder
from attnctl.cli.interrupt import Interrupt
from attnctl.cli.progress import Progress
from attnctl.cli.remarks import remark
from attnctl.cli.results import slug
from attnctl.cli.studio import load
from attnctl.imaging import run_record, save_png
from attnctl.inversion import sampler_of
from attnctl.pipelines.compose import (  # pyright: ignore[reportMissingImports]
    Composition,
    compose,
    refuse_other_models,
)
from attnctl.pipelines.edit_pictures import (  # pyright: ignore[reportMissingImports]
    check_size,
    fit_picture,
    fitted_size,
)
from attnctl.recipes import Recipe
from attnctl.sheets import Cell, Row, draw_sheet
from attnctl.technique import Technique


@dataclass(slots=True)
class Work:
    """One composition that was carried out, and where its files are."""

    order: ComposeOrder
    recipe: Recipe
    background: Image.Image
    made: Composition
    plain: Composition | None = None
    files: dict[str, Path] = field(default_factory=dict[str, Path])


def run_compose_order(order: ComposeOrder, *, as_json: bool = False, quiet: bool = False) -> None:
    """Compose what was ordered, and print where everything is."""
    quiet = quiet or as_json
    remark(order.notes, quiet)
    loading: Any = order
    pipe = load(loading)
    refuse_other_models(pipe)
    techniques = order.recipe.build_techniques()
    work = _composed(order, pipe, techniques, quiet)
    _save(work, pipe, techniques)
    report = work.made.report
    if report is not None:
        remark([report.table(), *(f"note: {text}" for text in report.warnings)], quiet)
    if as_json:
        print(json.dumps(_plain(work), ensure_ascii=False))  # noqa: T201
        return
    for name, path in work.files.items():
        print(f"{name}: {path}")  # noqa: T201
    shown = ", ".join(f"{key} {value:.4g}" for key, value in work.made.scores.to_dict().items())
    print(f"scores: {shown} ({work.made.evaluations} evaluations, {work.made.seconds:.1f} s)")  # noqa: T201


def _composed(order: ComposeOrder, pipe: Any, techniques: Sequence[Technique], quiet: bool) -> Work:
    size = order.recipe.size_px or fitted_size(pipe, order.background.size)
    check_size(pipe, size)
    background = fit_picture(order.background, size)
    if size != order.background.size:
        remark([f"the scene's {order.background.size} pixels fitted to {size}"], quiet)
    settings = order.settings
    refinements = 1 if settings.refinements is None else settings.refinements
    rounds = settings.steps * (2 + refinements + order.compare)
    with Interrupt(quiet=quiet) as interrupt, Progress(rounds, quiet=quiet) as bar:

        def on_evaluation(_done: int, _total: int) -> None:
            bar.step(1)
            interrupt.check()

        pictures = (pipe, background, order.subject, str(order.recipe.prompt))
        given: dict[str, Any] = {
            "words": order.words, "box": order.box, "mask": order.mask, "techniques": techniques,
            "on_evaluation": on_evaluation,
        }  # fmt: skip
        made = compose(*pictures, settings=settings, **given)
        recipe = order.recipe.changed(
            steps=settings.steps, guidance=made.settings.guidance, size=f"{size[0]}x{size[1]}"
        )
        work = Work(order, recipe, background, made)
        if order.compare:
            without = replace(settings, infuse=0.0, confine=False)
            work.plain = compose(*pictures, settings=without, inversion=made.inversion, **given)
    return work


def _save(work: Work, pipe: Any, techniques: Sequence[Technique]) -> None:
    """Save the picture with its record, and the sheet."""
    order, made = work.order, work.made
    record: dict[str, Any] = {
        "recipe": work.recipe.to_dict(),
        "prompt": work.recipe.prompt,
        "model": work.recipe.model,
        "seed": work.recipe.seed,
        **run_record(pipe, techniques, order.machine.kernel, sampler_of(pipe)),
        "compose": {
            **order.files,
            "box": list(order.box),
            "words": list(order.words),
            "settings": asdict(made.settings),
            "scores": made.scores.to_dict(),
        },
    }
    short = key_of({key: record[key] for key in ("recipe", "compose")})[:6]
    stem = f"{slug(str(work.recipe.prompt))}-{made.settings.domain}-{short}"
    work.files["composed"] = save_png(made.composed, order.out / f"{stem}.png", record)
    work.files["sheet"] = save_png(_sheet(work), order.out / f"{stem}-sheet.png")


def _sheet(work: Work) -> Image.Image:
    """Scene, canvas, what pasting gives, and the composed picture side by side."""
    made, placement = work.made, work.made.placement
    cells = [
        Cell(work.background, "scene"),
        Cell(placement.canvas, "object on its canvas"),
        Cell(placement.pasted, "pasted"),
    ]
    if work.plain is not None:
        cells.append(_cell(work.plain, "without both techniques"))
    cells.append(_cell(made, f"composed, {made.settings.domain}"))
    return draw_sheet([Row("", cells)], title=f"“{work.recipe.prompt}”, {work.recipe.model}")


def _cell(made: Composition, label: str) -> Cell:
    outside = made.scores.psnr_outside
    kept = "" if outside is None else f": {outside:.1f} dB around the box"
    return Cell(made.composed, label + kept)


def _plain(work: Work) -> dict[str, Any]:
    """Plain values for ``--json``."""
    made, report = work.made, work.made.report
    return {
        "recipe": work.recipe.to_dict(),
        **{name: str(path) for name, path in work.files.items()},
        "scores": made.scores.to_dict(),
        "without_techniques": None if work.plain is None else work.plain.scores.to_dict(),
        "settings": asdict(made.settings),
        "evaluations": made.evaluations,
        "seconds": round(made.seconds, 3),
        "notes": list(work.order.notes),
        "report": None if report is None else report.to_dict(),
    }
