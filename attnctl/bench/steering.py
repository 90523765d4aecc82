"""Does a technique do what it claims? The same prompts and seeds with and without it, verified."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.journal import Journal
from attnctl.bench.machine import fingerprint, machine_record
from attnctl.bench.pictures import finished, save_entry
from attnctl.bench.statistics import median
from attnctl.bench.tally import Line, tally
from attnctl.errors import SettingError, nearest
from attnctl.files import write_json
from attnctl.imaging import open_picture, scheduler_record
from attnctl.pipelines.fitting import check  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job,
    OnStep,
    draw,
)
from attnctl.recipes import Recipe
from attnctl.shapes.captions import Prompt, prompts
from attnctl.shapes.verifier import VerifierSettings

FORMAT = 2
RESULT_FILE = "results.json"
SPLITS = ("tuning", "validation")
MOST_PROMPTS = 100_000


@dataclass(frozen=True, slots=True)
class SteeringSettings:
    """What is measured.

    Attributes:
        model: Bundled name, folder or hub id.
        objects: Numbers of objects a prompt, 1 to 3.
        count: Prompts for each of these numbers.
        split: ``tuning``, ``validation``, or a whole number for a list of its own.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        batch_size: Pictures made together; part of what decides about the last bits.
    """

    model: str = "shapes"
    objects: tuple[int, ...] = (2, 3)
    count: int = 400
    split: str = "validation"
    steps: int = 25
    guidance: float = 5.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.split not in SPLITS and not re.fullmatch(r"\d{1,18}", self.split):
            raise SettingError(
                f"--split {self.split!r}; {nearest(self.split, SPLITS)}, or a whole number"
            )
        if not self.objects or len(set(self.objects)) != len(self.objects):
            raise SettingError(f"--objects {self.objects!r} must be different numbers, such as 2,3")
        if any(number not in (1, 2, 3) for number in self.objects):
            raise SettingError(f"--objects {self.objects!r} must be numbers from 1 to 3")
        for name, value in (("count", self.count), ("batch-size", self.batch_size)):
            if not 1 <= value <= MOST_PROMPTS:
                raise SettingError(f"--{name} {value} must lie between 1 and {MOST_PROMPTS}")

    def asked(self) -> list[list[tuple[str, Prompt]]]:
        """List the prompts with their ids, in batches that do not mix numbers of objects."""
        batches: list[list[tuple[str, Prompt]]] = []
        for number in self.objects:
            listed = prompts(self.split, number, self.count)
            named = [(f"{number}-{place:05d}", one) for place, one in enumerate(listed)]
            size = self.batch_size
            batches += [named[start : start + size] for start in range(0, len(named), size)]
        return batches


@dataclass(frozen=True, slots=True)
class Steering:
    """A finished measurement.

    Attributes:
        record: Plain values: settings, versions, results, every verdict, times.
        lines: What was counted.
        entries: One record a picture.
        folder: Where everything lies.
    """

    record: dict[str, Any]
    lines: list[Line]
    entries: list[dict[str, Any]]
    folder: Path

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions, plain first."""
        return [condition["name"] for condition in self.record["conditions"]]

    def picture(self, entry: Mapping[str, Any]) -> Image.Image:
        """The picture of an entry."""
        return open_picture(self.folder / str(entry["file"]))


def measure(
    pipe: Any,
    settings: SteeringSettings,
    conditions: Sequence[Condition],
    folder: Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Steering:
    """Make, verify and count the pictures; write the result as JSON.

    Batch by batch, every condition has its turn, so that times are compared under the same load.
    A picture's start noise comes from its own generator and is the same in all conditions.

    Args:
        pipe: A text-to-image pipeline that draws shapes.
        settings: What is measured.
        conditions: As :func:`~attnctl.bench.conditions.read_conditions` gives them.
        folder: For pictures, journal and result.
        resume: Go on with a run that was stopped.
        on_step: Called after each denoising step with the number of pictures moved on.
        say: Told about every finished batch.

    Raises:
        SettingError: the folder holds another run, or a setting cannot be used.
    """
    run, entries = collect(
        *(pipe, settings, conditions, folder), resume=resume, on_step=on_step, say=say
    )
    return _conclude(run, entries, folder)


def collect(
    pipe: Any,
    settings: SteeringSettings,
    conditions: Sequence[Condition],
    folder: Path,
    *,
    resume: bool,
    on_step: OnStep | None,
    say: Callable[[str], None],
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make and verify the pictures, as :func:`measure` does, and count nothing.

    Args:
        options: More arguments of the pipeline's call, the same in every condition.

    Returns:
        What decides about the pictures, and one record a picture.
    """
    run = _run_record(pipe, settings, conditions) | ({"options": dict(options)} if options else {})
    batches = settings.asked()
    for condition in conditions:
        check(pipe, _recipe(settings, condition, batches[0]))
    journal = Journal(folder, run)
    journal.open(resume=resume)
    entries: list[dict[str, Any]] = []
    for number, batch in enumerate(batches, 1):
        for condition in conditions:
            done = finished(journal, condition, batch, folder)
            if done is None:
                journal.forget(condition.name, [name for name, _ in batch])
                done = list(_make(pipe, settings, condition, batch, folder, on_step, options))
                journal.add(done)
            elif on_step is not None:
                on_step(len(batch) * settings.steps)
            entries += done
        say(_progress_line(number, len(batches), entries, [c.name for c in conditions]))
    return run, entries


def _run_record(
    pipe: Any, settings: SteeringSettings, conditions: Sequence[Condition]
) -> dict[str, Any]:
    """Everything that decides about the pictures and their verdicts."""
    device = str(pipe.device)
    scheduler = scheduler_record(pipe.scheduler)
    return {
        "settings": asdict(settings),
        "conditions": [condition.to_plain() for condition in conditions],
        "model": {
            "pipeline": type(pipe).__name__,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "weights": fingerprint(pipe),
            "scheduler": scheduler,
        },
        "verifier": asdict(VerifierSettings()),
        "machine": machine_record(device),
    }


def _recipe(
    settings: SteeringSettings, condition: Condition, batch: Sequence[tuple[str, Prompt]]
) -> Recipe:
    asked = [prompt for _, prompt in batch]
    return Recipe.from_dict(
        {
            "model": settings.model,
            "prompt": asked[0].text,
            "seed": asked[0].seed,
            "steps": settings.steps,
            "guidance": condition.guidance_or(settings.guidance),
            "techniques": condition.entries(asked),
        },
        name="",
    )


def _make(
    pipe: Any,
    settings: SteeringSettings,
    condition: Condition,
    batch: Sequence[tuple[str, Prompt]],
    folder: Path,
    on_step: OnStep | None,
    options: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    recipe = _recipe(settings, condition, batch)
    jobs = [Job(prompt.text, prompt.seed) for _, prompt in batch]
    drawn = draw(pipe, recipe, batch_size=len(jobs), jobs=jobs, on_step=on_step, options=options)
    for (name, prompt), picture in zip(batch, drawn, strict=True):
        yield save_entry(name, prompt, condition, picture, folder)


def _progress_line(
    number: int, total: int, entries: Sequence[Mapping[str, Any]], conditions: Sequence[str]
) -> str:
    counts: list[str] = []
    for name in conditions:
        mine = [entry for entry in entries if entry["condition"] == name]
        counts.append(f"{name} {sum(bool(entry['all_right']) for entry in mine)}/{len(mine)}")
    return f"batch {number} of {total}: all right {', '.join(counts)}"


def _conclude(run: Mapping[str, Any], entries: list[dict[str, Any]], folder: Path) -> Steering:
    names = [condition["name"] for condition in run["conditions"]]
    lines = tally(entries, names)
    verdicts = [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]
    record = {
        "format": FORMAT,
        "benchmark": "steering",
        **run,
        "results": [line.to_plain() for line in lines],
        "costs": costs(entries, names),
        "images": verdicts,
    }
    write_json(folder / RESULT_FILE, record)
    return Steering(record, lines, entries, folder)


def costs(
    entries: Sequence[Mapping[str, Any]], conditions: Sequence[str], reference: str = PLAIN
) -> list[dict[str, Any]]:
    """What each condition cost; times vary from run to run, gradient passes do not."""
    seconds = {(e["condition"], e["id"]): float(e["seconds"]) for e in entries}
    rows: list[dict[str, Any]] = []
    for name in conditions:
        mine = [entry for entry in entries if entry["condition"] == name]
        ratios = [seconds[name, e["id"]] / seconds[reference, e["id"]] for e in mine]
        rows.append(
            {
                "condition": name,
                "gradient_passes": sum(int(e["gradients"]) for e in mine) / len(mine),
                "seconds": median([float(e["seconds"]) for e in mine]),
                "time_ratio": median(ratios),
            }
        )
    return rows
