"""Carry out an order: load the pipeline, make the pictures, save them, draw the sheets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnctl.cli.interrupt import Interrupt
from attnctl.cli.order import DTYPES, Order
from attnctl.cli.progress import Progress
from attnctl.cli.remarks import remark
from attnctl.cli.results import Result, save_result, slug
from attnctl.imaging import save_png
from attnctl.pipelines.fitting import check, resolve  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job,
    Picture,
    draw,
    jobs_of,
)
from attnctl.recipes import Recipe

SHEET_PICTURES = 64
"""A sheet shows at most so many pictures."""

SHEET_COLUMNS = 8


@dataclass(slots=True)
class Tally:
    """What has been made so far, and what the runs said."""

    results: list[Result] = field(default_factory=list[Result])
    notes: dict[str, None] = field(default_factory=dict[str, None])
    report: dict[str, Any] | None = None
    summary: str = ""

    def add(self, result: Result, picture: Picture) -> None:
        """Count a picture; of many, only the first ones keep their pixels for a sheet."""
        self.results.append(result)
        if len(self.results) > SHEET_PICTURES:
            result.forget_pixels()
        self.report, self.summary = picture.report, picture.summary
        self.notes |= dict.fromkeys(_notes(picture.report))


def run_order(order: Order, *, as_json: bool = False, quiet: bool = False) -> None:
    """Make everything that was ordered, and print where it is."""
    quiet = quiet or as_json
    remarks = list(order.remarks)
    if order.has_random_seed:
        seed = order.recipe.seed
        remarks.append(f"seed {seed} (random; repeat with --seed {seed})")
    remark(remarks, quiet)
    pipe = load(order)
    recipe = resolve(order.recipe, pipe)
    check(pipe, recipe, order.words)
    tally = _make(order, recipe, pipe, quiet)
    remark([tally.summary, *tally.notes], quiet)
    sheets = _sheets(order, recipe, tally.results)
    if as_json:
        _tell_json(order, recipe, tally, sheets)
    else:
        _tell(order, tally, sheets)


def _make(order: Order, recipe: Recipe, pipe: Any, quiet: bool) -> Tally:
    jobs, wanted = _jobs(order, recipe)
    rounds = 2 if order.compare else 1
    tally = Tally()
    steps = len(jobs) * (recipe.steps or 1) * rounds
    with Interrupt(quiet=quiet) as interrupt, Progress(steps, quiet=quiet) as progress:

        def on_step(pictures: int) -> None:
            progress.step(pictures)
            interrupt.check()

        for picture, plain in _pairs(order, recipe, pipe, jobs, on_step):
            if wanted is None or picture.recipe.seed == wanted.seed:
                result = save_result(order, picture, plain)
                tally.add(result, picture)
                progress.say(result.line(len(tally.results), len(jobs)))
    return tally


def load(order: Order, *, local_only: bool = False) -> Any:
    """Load the pipeline where and how it was ordered; ``local_only`` without any download."""
    import torch

    import attnctl

    silence_loading()
    dtype = order.machine.dtype
    dtype = DTYPES.get(dtype, dtype) if dtype else None
    offload = order.machine.offload
    pipe = attnctl.load_pipeline(
        order.recipe.model,
        dtype=getattr(torch, dtype) if dtype else None,
        device="cpu" if offload != "none" else order.machine.device or _best_device(),
        local_only=local_only,
    )
    if offload == "model":
        pipe.enable_model_cpu_offload(device=order.machine.device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=order.machine.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def silence_loading() -> None:
    """Keep the libraries' loading bars and remarks from standing between our own lines."""
    import warnings

    import transformers.utils.logging

    transformers.utils.logging.set_verbosity_error()  # before diffusers imports its pipelines
    transformers.utils.logging.disable_progress_bar()
    import diffusers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")


def _jobs(order: Order, recipe: Recipe) -> tuple[list[Job], Job | None]:
    """Pictures to make, and the only one to keep if a batch is made again."""
    if order.batch is None:
        return jobs_of(recipe), None
    jobs = [Job(str(job["prompt"]), int(job["seed"])) for job in order.batch["jobs"]]
    return jobs, jobs[int(order.batch["index"])]


def _pairs(
    order: Order, recipe: Recipe, pipe: Any, jobs: Sequence[Job], on_step: Callable[[int], None]
) -> Iterator[tuple[Picture, Picture | None]]:
    """Yield each picture with its plain twin; the steered one is made first."""
    size = len(jobs) if order.batch else order.machine.batch_size
    options: dict[str, Any] = {"batch_size": size, "jobs": jobs, "on_step": on_step}
    steered = draw(pipe, recipe, words=order.words, kernel=order.machine.kernel, **options)
    if not order.compare:
        yield from ((picture, None) for picture in steered)
        return
    yield from zip(steered, draw(pipe, recipe.changed(techniques=[]), **options), strict=True)


def _sheets(order: Order, recipe: Recipe, results: Sequence[Result]) -> dict[str, Path]:
    from attnctl.cli.sheet import compare_sheet, grid_sheet

    shown = results[:SHEET_PICTURES]
    base = f"{slug(recipe.prompts[0])}-{recipe.id[:6]}"
    sheets: dict[str, Path] = {}
    if order.compare or order.words:
        sheet = compare_sheet(recipe, shown, order.words, columns=SHEET_COLUMNS)
        sheets["sheet"] = save_png(sheet, order.out / f"{base}-sheet.png")
    if order.grid:
        sheets["grid"] = save_png(grid_sheet(recipe, shown), order.out / f"{base}-grid.png")
    return sheets


def _tell_json(order: Order, recipe: Recipe, tally: Tally, sheets: dict[str, Path]) -> None:
    answer = {
        "recipe": recipe.to_dict(),
        "out": str(order.out),
        "pictures": [result.to_dict() for result in tally.results],
        **{name: str(path) for name, path in sheets.items()},
        "notes": list(tally.notes),
        "report": tally.report,
    }
    print(json.dumps(answer, ensure_ascii=False))  # noqa: T201


def _tell(order: Order, tally: Tally, sheets: dict[str, Path]) -> None:
    for result in tally.results:
        same = ""
        if result.is_identical is not None:
            same = f" {'' if result.is_identical else 'NOT '}identical to {order.source}"
        print(f"{result.shot.path}{same}")  # noqa: T201
    for name, path in sheets.items():
        print(f"{name}: {path}")  # noqa: T201


def _notes(report: dict[str, Any] | None) -> Iterator[str]:
    """Warnings of a run, and techniques that were asked for but never acted."""
    if report is None:
        return
    acted = {name for entry in report["entries"] for name in entry["techniques"]}
    acted |= {entry["technique"] for entry in report["losses"]}
    yield from (
        f"note: {name} acted at no step" for name in report["settings"] if name not in acted
    )
    yield from (f"note: {text}" for text in report["warnings"])
