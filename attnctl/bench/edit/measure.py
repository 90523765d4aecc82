"""Edits with a known answer: methods side by side, scored by program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.edit.cases import EditCase, make_cases
from attnctl.bench.edit.comparison import Line, compare
from attnctl.bench.edit.methods import NOTHING, SDEDIT, Method, Studio, edit
from attnctl.bench.edit.scores import score
from attnctl.bench.edit.settings import choice_text
from attnctl.bench.journal import Journal
from attnctl.bench.machine import fingerprint, machine_record
from attnctl.bench.pictures import pixels_hash
from attnctl.errors import AttnctlError, SettingError
from attnctl.files import write_json, write_text
from attnctl.imaging import open_picture, save_png, scheduler_record
from attnctl.inversion.pictures import decode, encode
from attnctl.shapes.evaluate import sampling_of
from attnctl.sheets import Cell, Row, draw_sheet

FORMAT = 1
CHOICE_FILE = "choice.json"
LEAST_GAIN_DB = 4.0
"""An edit is meant to leave the rest alone: what preserves hardly more than a new picture does is
not chosen, however often it succeeds."""

SHOWN = 10
"""Edits on the sheet: the first ones of the list, two of each kind."""


@dataclass(frozen=True, slots=True)
class EditBenchSettings:
    """What is measured.

    Attributes:
        model: Bundled name or folder.
        count: Edits a method.
        split: Name of the list of edits.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
    """

    model: str = "shapes"
    count: int = 200
    split: str = "validation"
    steps: int = 25
    guidance: float = 5.0

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("steps", 1)):
            value = getattr(self, name)
            if not least <= value <= 100_000:
                raise SettingError(f"--{name} {value} must lie between {least} and 100000")


@dataclass(frozen=True, slots=True)
class Edits:
    """A finished measurement.

    Attributes:
        record: Plain values: settings, versions, results, every score.
        lines: The table.
        entries: One record an edit.
        cases: The edits.
        folder: Where everything lies.
    """

    record: dict[str, Any]
    lines: list[Line]
    entries: list[dict[str, Any]]
    cases: list[EditCase]
    folder: Path

    def save(self, name: str) -> dict[str, Path]:
        """Write result and sheet into the folder of the measurement.

        Returns:
            Paths by name: ``result`` and ``sheet``.
        """
        result, sheet = (self.folder / f"{name}.{ending}" for ending in ("json", "png"))
        write_json(result, self.record)
        save_png(draw_edits(self), sheet)
        return {"result": result, "sheet": sheet}


def settings_for(
    pipe: Any,
    model: str,
    count: int,
    split: str,
    steps: int | None = None,
    guidance: float | None = None,
) -> EditBenchSettings:
    """Settings with the usual steps and guidance of the pipeline where none are given.

    Raises:
        SettingError: a value cannot be used, or the pipeline draws no shapes.
    """
    usual = sampling_of(pipe)
    weight = usual.guidance if guidance is None else guidance
    return EditBenchSettings(model, count, split, usual.steps if steps is None else steps, weight)


def measure(
    pipe: Any,
    settings: EditBenchSettings,
    methods: Sequence[Method],
    folder: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> Edits:
    """Make, score and compare the edits; case by case, every method has its turn.

    Args:
        pipe: A pipeline that draws shapes.
        settings: What is measured.
        methods: What is compared.
        folder: For pictures, journal and result.
        resume: Go on with a run that was stopped.
        say: Told about every finished case.

    Raises:
        SettingError: the folder holds another run.
    """
    run = _record(pipe, settings, methods)
    journal = Journal(folder, run)
    journal.open(resume=resume)
    cases = make_cases(settings.split, settings.count)
    entries: list[dict[str, Any]] = []
    for number, case in enumerate(cases, 1):
        studio: Studio | None = None
        for method in methods:
            entry = _known(journal, method, case, folder)
            if entry is None:
                studio = studio or _studio(pipe, case, settings)
                journal.forget(method.name, [case.name])
                entry = _make(studio, method, folder)
                journal.add([entry])
            entries.append(entry)
        say(_progress(number, len(cases), entries, methods))
    lines = compare(entries, [method.name for method in methods])
    record = {
        "format": FORMAT,
        "benchmark": "edit",
        **run,
        "results": [line.to_plain() for line in lines],
        "edits": [
            {"id": c.name, "kind": c.kind, "source": str(c.source), "target": str(c.target)}
            for c in cases
        ],
        "scores": [_told(entry) for entry in entries],
    }
    return Edits(record, lines, entries, cases, folder)


def choose_of(done: Edits, methods: Sequence[Method]) -> list[Method]:
    """Choose one method of each family, and write the choice beside the result.

    Among those that preserve at least `LEAST_GAIN_DB` more than plain re-generation: the one whose
    success exceeds that of SDEdit at equal preservation most; of equal ones the one that
    preserves more.
    """
    gains = {
        line.method: (_preserves(line), line.gained_success[0], line.psnr[0])
        for line in done.lines
        if line.gained_success is not None
    }
    tried = [m for m in methods if m.kind not in ("nothing", "regenerate", "sdedit")]
    families = dict.fromkeys(method.family for method in tried)
    best = (
        max((m for m in tried if m.family == family), key=lambda m: gains[m.name])
        for family in families
    )
    chosen = [replace(method, name=method.family) for method in best]
    write_text(done.folder / CHOICE_FILE, choice_text(chosen))
    return chosen


def _preserves(line: Line) -> bool:
    return line.gained_psnr is None or line.gained_psnr[0] >= LEAST_GAIN_DB


def draw_edits(done: Edits, most: int = SHOWN) -> Image.Image:
    """Draw the first edits: source, one right answer, and every method."""
    cases = done.cases[:most]
    rows = [
        Row("source", [Cell(case.picture, str(case.source)) for case in cases]),
        Row("right answer", [Cell(case.answer, str(case.target)) for case in cases]),
    ]
    places = {(entry["condition"], entry["id"]): entry for entry in done.entries}
    for line in done.lines:
        mine = [places[line.method, case.name] for case in cases]
        rows.append(Row(line.method, [_cell(entry, done.folder) for entry in mine]))
    settings = done.record["settings"]
    title = (
        f"First edits of the list, not picked; {settings['model']}, {settings['steps']} steps, "
        f"guidance {settings['guidance']:g}; dB: PSNR outside the edited region"
    )
    return draw_sheet(rows, title=title)


def _cell(entry: Mapping[str, Any], folder: Path) -> Cell:
    missing = [word for word in ("reached", "kept") if not entry[word]]
    verdict = f"not {' or '.join(missing)}" if missing else "done"
    caption = f"{verdict}, {entry['psnr']:.1f} dB"
    return Cell(open_picture(folder / str(entry["file"])), caption, bool(entry["success"]))


def _record(pipe: Any, settings: EditBenchSettings, methods: Sequence[Method]) -> dict[str, Any]:
    """Everything that decides about the pictures."""
    return {
        "settings": asdict(settings),
        "methods": [method.to_plain() for method in methods],
        "model": {
            "pipeline": type(pipe).__name__,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "weights": fingerprint(pipe),
            "scheduler": scheduler_record(pipe.scheduler),
        },
        "machine": machine_record(str(pipe.device)),
    }


def _studio(pipe: Any, case: EditCase, settings: EditBenchSettings) -> Studio:
    clean = encode(pipe, [case.picture])
    options = sampling_of(pipe).options
    return Studio(pipe, case, clean, settings.steps, settings.guidance, options)


def _known(journal: Journal, method: Method, case: EditCase, folder: Path) -> dict[str, Any] | None:
    """What is known of an edit whose picture is there and whole."""
    entry = journal.get(method.name, case.name)
    if entry is None:
        return None
    try:
        is_whole = pixels_hash(open_picture(folder / str(entry["file"]))) == entry["pixels"]
    except AttnctlError:
        return None
    return entry if is_whole else None


def _make(studio: Studio, method: Method, folder: Path) -> dict[str, Any]:
    case, started = studio.case, time.perf_counter()
    (image,) = decode(studio.pipe, edit(studio, method), case.picture.size)
    seconds = time.perf_counter() - started
    file = f"pictures/{case.name}-{method.slug}.png"
    save_png(image, folder / file, {"prompt": str(case.target), "method": method.name})
    return {
        "id": case.name,
        "condition": method.name,
        "kind": case.kind,
        **score(case, image),
        "file": file,
        "pixels": pixels_hash(image),
        "seconds": seconds,
    }


def _told(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry for the result file: without its time, numbers to four digits."""
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in entry.items()
        if key != "seconds"
    }


def _progress(
    number: int, total: int, entries: Sequence[Mapping[str, Any]], methods: Sequence[Method]
) -> str:
    shown: list[str] = []
    for method in methods:
        if method.name != NOTHING and not method.name.startswith(SDEDIT):
            mine = [e for e in entries if e["condition"] == method.name]
            shown.append(f"{method.name} {sum(bool(e['success']) for e in mine)}/{len(mine)}")
    return f"edit {number} of {total}: {', '.join(shown)}"
