"""Carry out an edit: load the pipeline, fit the picture, edit, save, draw the sheet, tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from attnctl.bench.journal import key_of
from attnctl.cli.edit_order import EditOrder
from attnctl.cli.interrupt import Interrupt
from attnctl.cli.progress import Progress
from attnctl.cli.remarks import remark
from attnctl.cli.results import slug
from attnctl.cli.studio import load
from attnctl.imaging import run_record, save_png
from attnctl.inversion import refuse_unsupported, sampler_of
from attnctl.pipelines.edit import Edit, edit  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.edit_pictures import (  # pyright: ignore[reportMissingImports]
    check_size,
    fit_mask,
    fit_picture,
    fitted_size,
)
from attnctl.recipes import Recipe
from attnctl.sheets import Cell, Row, colour_heat, draw_sheet
from attnctl.technique import Technique

BASELINES = ("flow-edit", "sdedit", "regenerate")


@dataclass(slots=True)
class Work:
    """One edit that was carried out, and where its files are."""

    order: EditOrder
    recipe: Recipe
    picture: Image.Image
    mask: Image.Image | None
    made: Edit
    others: dict[str, Edit] = field(default_factory=dict[str, Edit])
    files: dict[str, Path] = field(default_factory=dict[str, Path])


def run_edit_order(order: EditOrder, *, as_json: bool = False, quiet: bool = False) -> None:
    """Edit the picture that was ordered, and print where everything is."""
    quiet = quiet or as_json
    remark([f"{order.path}: {note}" for note in order.notes], quiet)
    loading: Any = order
    pipe = load(loading)
    refuse_unsupported(pipe, pictures=True)
    techniques = order.recipe.build_techniques()
    _check_techniques(pipe, techniques)
    work = _edited(order, pipe, techniques, quiet)
    save_work(work, pipe, techniques)
    report = work.made.report
    if report is not None and techniques:
        remark([report.table(), *(f"note: {text}" for text in report.warnings)], quiet)
    if as_json:
        _tell_json(work)
    else:
        _tell(work)


def _check_techniques(pipe: Any, techniques: Sequence[Technique]) -> None:
    """Refuse techniques that do not fit the model or each other, before the inversion."""
    import attnctl

    if techniques:
        attnctl.attach(pipe, list(techniques)).detach()


def _edited(order: EditOrder, pipe: Any, techniques: Sequence[Technique], quiet: bool) -> Work:
    size = order.recipe.size_px or fitted_size(pipe, order.picture.size)
    check_size(pipe, size)
    picture = fit_picture(order.picture, size)
    mask = None if order.mask is None else fit_mask(order.mask, order.picture, size)
    if size != order.picture.size:
        remark([f"{order.path}: {order.picture.size} pixels fitted to {size}"], quiet)
    settings = order.settings
    rounds = 2 + settings.inverts * (settings.refinements or 3) + order.compare * (1 + 3)
    with Interrupt(quiet=quiet) as interrupt, Progress(settings.steps * rounds, quiet=quiet) as bar:

        def on_evaluation(_done: int, _total: int) -> None:
            bar.step(1)
            interrupt.check()

        given: dict[str, Any] = {"mask": mask, "on_evaluation": on_evaluation}
        texts = (order.source, str(order.recipe.prompt))
        made = edit(pipe, picture, *texts, settings=settings, techniques=techniques, **given)
        recipe = order.recipe.changed(
            steps=settings.steps, guidance=made.settings.guidance, size=f"{size[0]}x{size[1]}"
        )
        work = Work(order, recipe, picture, mask, made)
        if order.compare and techniques:
            work.others["without techniques"] = edit(
                pipe, picture, *texts, settings=settings, inversion=made.inversion, **given
            )
        for name in BASELINES if order.compare else ():
            if name != settings.method:
                other = replace(settings, method=name, refinements=None)
                work.others[name] = edit(pipe, picture, *texts, settings=other, **given)
    return work


def save_work(work: Work, pipe: Any, techniques: Sequence[Technique]) -> None:
    """Save the edit with its record, the difference map and the sheet."""
    record = _record(work, pipe, techniques)
    names = "+".join(technique.name for technique in techniques) or "plain"
    short = key_of({k: record[k] for k in ("recipe", "edit")})[:6]
    stem = f"{slug(str(work.recipe.prompt))}-{work.made.settings.method}-{names[:60]}-{short}"
    out = work.order.out
    work.files["edited"] = save_png(work.made.edited, out / f"{stem}.png", record)
    difference = difference_map(work.picture, work.made.edited)
    work.files["difference"] = save_png(difference, out / f"{stem}-difference.png")
    work.files["sheet"] = save_png(edit_sheet(work, names), out / f"{stem}-sheet.png")


def _record(work: Work, pipe: Any, techniques: Sequence[Technique]) -> dict[str, Any]:
    """Everything that decides about the edit's pixels, as plain values."""
    recipe, order, made = work.recipe, work.order, work.made
    return {
        "recipe": recipe.to_dict(),
        "prompt": recipe.prompt,
        "model": recipe.model,
        "seed": recipe.seed,
        **run_record(pipe, techniques, order.machine.kernel, sampler_of(pipe)),
        "edit": {
            "source": order.source,
            "picture": {"name": order.path.name, "sha256": order.sha256},
            "mask": work.mask is not None,
            "settings": asdict(made.settings),
            "scores": made.scores.to_dict(),
        },
    }


def difference_map(source: Image.Image, edited: Image.Image) -> Image.Image:
    """Mean absolute difference over the channels, in colours; half of the range is brightest."""
    a, b = (np.asarray(image, dtype=np.float64) / 255 for image in (source, edited))
    return colour_heat(2 * np.abs(a - b).mean(axis=2))


def edit_sheet(work: Work, names: str) -> Image.Image:
    """Source, reconstruction, edit and difference side by side; other methods below."""
    made, scores = work.made, work.made.scores
    rebuilt = f"{scores.reconstruction_psnr:.1f} dB"
    cells = [
        Cell(work.picture, f"source: {work.order.source}"),
        Cell(made.reconstruction, f"reconstruction, {rebuilt}"),
        _cell(work, made, f"{made.settings.method}, {names}"),
        Cell(difference_map(work.picture, made.edited), "difference"),
    ]
    if work.mask is not None:
        cells.append(Cell(work.mask.convert("RGB"), "mask: white may change"))
    rows = [Row("", cells)]
    if work.others:
        rows.append(Row("", [_cell(work, other, name) for name, other in work.others.items()]))
    return draw_sheet(rows, title=f"“{work.recipe.prompt}”, {work.recipe.model}")


def _cell(work: Work, made: Edit, label: str) -> Cell:
    verdict = _verdict(work.recipe, made.edited)
    text = f"{label}: {made.scores.psnr:.1f} dB, SSIM {made.scores.ssim:.2f}"
    return Cell(made.edited, text, verdict)


def _verdict(recipe: Recipe, image: Image.Image) -> bool | None:
    """Whether a program finds the target in a picture of the shapes world."""
    if not recipe.model.startswith("shapes"):
        return None
    from attnctl.shapes import verify

    try:
        return verify(image, str(recipe.prompt)).all_right
    except ValueError:  # a prompt that names no shapes
        return None


def _tell(work: Work) -> None:
    for name, path in work.files.items():
        print(f"{name}: {path}")  # noqa: T201
    for name, made in {"scores": work.made, **work.others}.items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in made.scores.to_dict().items())
        print(f"{name}: {shown} ({made.evaluations} evaluations, {made.seconds:.1f} s)")  # noqa: T201


def _tell_json(work: Work) -> None:
    report = work.made.report
    answer: dict[str, Any] = {
        "recipe": work.recipe.to_dict(),
        **{name: str(path) for name, path in work.files.items()},
        **_plain(work, work.made),
        "notes": list(work.order.notes),
        "others": {name: _plain(work, made) for name, made in work.others.items()},
        "report": None if report is None else report.to_dict(),
    }
    print(json.dumps(answer, ensure_ascii=False))  # noqa: T201


def _plain(work: Work, made: Edit) -> dict[str, Any]:
    values: dict[str, Any] = {
        "scores": made.scores.to_dict(),
        "settings": asdict(made.settings),
        "evaluations": made.evaluations,
        "seconds": round(made.seconds, 3),
    }
    verdict = _verdict(work.recipe, made.edited)
    return values if verdict is None else values | {"all_right": verdict}
