"""Carry out an order: load the pipeline, make the pictures, save them, draw the sheets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnctl.cli.order import DTYPES, Order
from attnctl.cli.progress import Progress
from attnctl.imaging import open_picture, save_png
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
class Result:
    """One finished picture, its twin without techniques, and where they lie."""

    picture: Picture
    path: Path
    plain: Picture | None = None
    plain_path: Path | None = None
    heat_paths: dict[str, Path] = field(default_factory=dict[str, Path])
    is_identical: bool | None = None


def run_order(order: Order, *, as_json: bool = False, quiet: bool = False) -> None:
    """Make everything that was ordered, and print where it is."""
    quiet = quiet or as_json
    remark = _remark(quiet)
    for text in order.remarks:
        remark(text)
    if order.has_random_seed:
        remark(f"seed {order.recipe.seed} (random; repeat with --seed {order.recipe.seed})")
    pipe = load(order)
    recipe = resolve(order.recipe, pipe)
    check(pipe, recipe, order.words)
    jobs, wanted = _jobs(order, recipe)
    rounds = 2 if order.compare else 1
    results: list[Result] = []
    with Progress(len(jobs) * (recipe.steps or 1) * rounds, quiet=quiet) as progress:
        for picture, plain in _pairs(order, recipe, pipe, jobs, progress):
            if wanted is None or picture.recipe.seed == wanted.seed:
                results.append(_save(order, picture, plain))
                progress.say(_line(results[-1], len(results), len(jobs)))
    if results and results[-1].picture.summary:
        remark(results[-1].picture.summary)
    for note in _notes(results):
        remark(note)
    sheets = _sheets(order, recipe, results)
    _print(order, recipe, results, sheets, as_json)


def load(order: Order) -> Any:
    """Load the pipeline where and how it was ordered."""
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


def verdict(recipe: Recipe, picture: Picture) -> tuple[str, bool] | None:
    """Let the program look at a picture of the shapes world; ``None`` for other pictures."""
    if not recipe.model.startswith("shapes"):
        return None
    from attnctl.shapes import verify

    try:
        seen = verify(picture.image, str(picture.recipe.prompt))
    except ValueError:  # a prompt that names no shapes
        return None
    label = seen.label()
    return (f"all there, {label}" if seen.all_right and not seen.exact else label), seen.all_right


def _jobs(order: Order, recipe: Recipe) -> tuple[list[Job], Job | None]:
    """Pictures to make, and the only one to keep if a batch is made again."""
    if order.batch is None:
        return jobs_of(recipe), None
    jobs = [Job(str(job["prompt"]), int(job["seed"])) for job in order.batch["jobs"]]
    return jobs, jobs[int(order.batch["index"])]


def _pairs(
    order: Order, recipe: Recipe, pipe: Any, jobs: Sequence[Job], progress: Progress
) -> Iterator[tuple[Picture, Picture | None]]:
    """Yield each picture with its plain twin; the steered one is made first."""
    size = len(jobs) if order.batch else order.machine.batch_size
    options: dict[str, Any] = {"batch_size": size, "jobs": jobs, "on_step": progress.step}
    steered = draw(pipe, recipe, words=order.words, kernel=order.machine.kernel, **options)
    if not order.compare:
        yield from ((picture, None) for picture in steered)
        return
    yield from zip(steered, draw(pipe, recipe.changed(techniques=[]), **options), strict=True)


def _save(order: Order, picture: Picture, plain: Picture | None) -> Result:
    from attnctl.sheets import overlay_heat

    path = order.out / f"{_stem(picture.recipe)}.png"
    result = Result(picture, path, plain)
    if order.source is not None:
        before = open_picture(order.source)
        result.is_identical = before.tobytes() == picture.image.convert(before.mode).tobytes()
        if path.exists() and path.samefile(order.source):
            result.path = path = path.with_name(f"{path.stem}-again.png")
    save_png(picture.image, path, picture.record)
    if plain is not None:
        result.plain_path = save_png(
            plain.image, order.out / f"{_stem(plain.recipe)}.png", plain.record
        )
    for word, heat in picture.heat.items():
        overlay = overlay_heat(picture.image, heat)
        target = path.with_name(f"{path.stem}-heat-{_slug(word)}.png")
        result.heat_paths[word] = save_png(overlay, target)
    return result


def _sheets(order: Order, recipe: Recipe, results: Sequence[Result]) -> dict[str, Path]:
    from attnctl.cli.sheet import compare_sheet, grid_sheet

    shown = results[:SHEET_PICTURES]
    base = f"{_slug(recipe.prompts[0])}-{recipe.id[:6]}"
    sheets: dict[str, Path] = {}
    if order.compare or order.words:
        sheet = compare_sheet(recipe, shown, order.words, columns=SHEET_COLUMNS)
        sheets["sheet"] = save_png(sheet, order.out / f"{base}-sheet.png")
    if order.grid:
        sheets["grid"] = save_png(grid_sheet(recipe, shown), order.out / f"{base}-grid.png")
    return sheets


def _print(
    order: Order,
    recipe: Recipe,
    results: Sequence[Result],
    sheets: dict[str, Path],
    as_json: bool,
) -> None:
    if as_json:
        answer = {
            "recipe": recipe.to_dict(),
            "out": str(order.out),
            "pictures": [_plain_result(recipe, result) for result in results],
            **{name: str(path) for name, path in sheets.items()},
            "report": results[-1].picture.report if results else None,
        }
        _write(json.dumps(answer, ensure_ascii=False))
        return
    for result in results:
        again = {True: " identical to", False: " NOT identical to", None: ""}[result.is_identical]
        _write(f"{result.path}{again}{f' {order.source}' if again else ''}")
    for name, path in sheets.items():
        _write(f"{name}: {path}")


def _plain_result(recipe: Recipe, result: Result) -> dict[str, Any]:
    values: dict[str, Any] = {
        "path": str(result.path),
        "prompt": result.picture.recipe.prompt,
        "seed": result.picture.recipe.seed,
        "seconds": round(result.picture.seconds, 3),
    }
    if seen := verdict(recipe, result.picture):
        values |= {"verdict": seen[0], "all_right": seen[1]}
    if result.heat_paths:
        values["heatmaps"] = {word: str(path) for word, path in result.heat_paths.items()}
    if result.plain is not None:
        values["plain"] = {
            "path": str(result.plain_path), "seconds": round(result.plain.seconds, 3)
        }  # fmt: skip
        if seen := verdict(recipe, result.plain):
            values["plain"] |= {"verdict": seen[0], "all_right": seen[1]}
    if result.is_identical is not None:
        values["identical"] = result.is_identical
    return values


def _line(result: Result, number: int, count: int) -> str:
    seen = verdict(result.picture.recipe, result.picture)
    shown = f", {seen[0]}" if seen else ""
    seed = result.picture.recipe.seed
    return f"picture {number} of {count}: seed {seed}, {result.picture.seconds:.1f} s{shown}"


def _notes(results: Sequence[Result]) -> list[str]:
    """Warnings of the runs, and techniques that were asked for but never acted; once each."""
    notes: dict[str, None] = {}
    for report in (r.picture.report for r in results if r.picture.report is not None):
        acted = {name for entry in report["entries"] for name in entry["techniques"]}
        acted |= {entry["technique"] for entry in report["losses"]}
        idle = [name for name in report["settings"] if name not in acted]
        notes |= {f"note: {name} acted at no step": None for name in idle}
        notes |= {f"note: {text}": None for text in report["warnings"]}
    return list(notes)


def _stem(recipe: Recipe) -> str:
    """File name that says what is in it, and that only an equal recipe shares."""
    names = "+".join(entry.name for entry in recipe.techniques)[:60] or "plain"
    return f"{_slug(str(recipe.prompt))}-s{recipe.seed}-{names}-{recipe.id[:6]}"


def _slug(text: str) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in text.lower()).split()
    return "-".join(words)[:48].strip("-") or "picture"


def _remark(quiet: bool) -> Any:
    return (lambda _text: None) if quiet else (lambda text: print(text, file=sys.stderr))  # noqa: T201


def _write(text: str) -> None:
    print(text)  # noqa: T201
