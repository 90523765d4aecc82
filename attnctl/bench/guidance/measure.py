"""What guidance by perturbation gives and costs: verified pictures, and their distance to scenes.

No guidance, classifier-free guidance, and perturbed attention beside it at the same weight, with
the same prompts and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.frechet import RESAMPLES
from attnctl.bench.guidance.settings import CFG, Setting, choice_text, choose
from attnctl.bench.quality import SCENES_A_PROMPT, FrechetTable, measure_distances
from attnctl.bench.steering import SteeringSettings, collect, costs
from attnctl.bench.tally import Line, tally
from attnctl.errors import SettingError
from attnctl.files import sha256_of, write_json, write_text
from attnctl.imaging import open_picture, save_png
from attnctl.pipelines.text_to_image import OnStep  # pyright: ignore[reportMissingImports]
from attnctl.shapes.captions import Prompt
from attnctl.shapes.evaluate import sampling_of
from attnctl.shapes.features import CLASSIFIER_FILE, load_classifier, to_batch
from attnctl.sheets import CELL_PX, PAPER, Cell, Row, draw_sheet

FORMAT = 1
CHOICE_FILE = "choice.json"


@dataclass(frozen=True, slots=True)
class Guidance:
    """A finished measurement.

    Attributes:
        record: Plain values: settings, versions, results, every verdict, times.
        lines: What was counted, compared to classifier-free guidance.
        frechet: Distances to rendered scenes.
        costs: Denoiser rows and time of each condition.
        entries: One record a picture.
        folder: Where everything lies.
    """

    record: dict[str, Any]
    lines: list[Line]
    frechet: FrechetTable
    costs: list[dict[str, Any]]
    entries: list[dict[str, Any]]
    folder: Path

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions, in the order of the table."""
        return [condition["name"] for condition in self.record["conditions"]]

    def line(self, measure: str, condition: str) -> Line:
        """The count of one measure over all prompts."""
        found = [x for x in self.lines if (x.measure, x.condition) == (measure, condition)]
        return found[-1]

    def save(self, name: str) -> dict[str, Path]:
        """Write the result and the sheet into the folder of the measurement.

        Returns:
            Paths by name: ``result`` and ``sheet``.
        """
        result, sheet = (self.folder / f"{name}.{ending}" for ending in ("json", "png"))
        write_json(result, self.record)
        save_png(_sheet(self), sheet)
        return {"result": result, "sheet": sheet}


def settings_for(
    pipe: Any,
    model: str,
    objects: tuple[int, ...],
    count: int,
    split: str,
    steps: int | None = None,
    guidance: float | None = None,
    batch_size: int = 10,
) -> SteeringSettings:
    """Settings with the usual steps and guidance of the pipeline where none are given.

    Raises:
        SettingError: a value cannot be used, or the pipeline is of no known class.
    """
    usual = sampling_of(pipe)
    weight = usual.guidance if guidance is None else guidance
    if not weight > 1:
        raise SettingError(
            f"--guidance {weight:g} is no classifier-free guidance, which the others are compared"
            " to; give more than 1"
        )
    number = usual.steps if steps is None else steps
    return SteeringSettings(model, objects, count, split, number, weight, batch_size)


def measure(
    pipe: Any,
    settings: SteeringSettings,
    conditions: Sequence[Condition],
    folder: Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Guidance:
    """Make and verify the pictures, and compare them as sets to rendered scenes.

    Args:
        pipe: A pipeline that draws shapes.
        settings: What is measured.
        conditions: Among them `CFG`, which the others are compared to.
        folder: For pictures, journal and result.
        resume: Go on with a run that was stopped.
        on_step: Called after each denoising step with the number of pictures moved on.
        say: Told about every finished batch.

    Raises:
        SettingError: the folder holds another run, or a setting cannot be used.
    """
    load_classifier()  # missing weights are told before hours of drawing
    run, entries = collect(
        *(pipe, settings, conditions, folder),
        resume=resume,
        on_step=on_step,
        say=say,
        options=sampling_of(pipe).options,
    )
    return _conclude(run, settings, conditions, entries, folder)


def _conclude(
    run: Mapping[str, Any],
    settings: SteeringSettings,
    conditions: Sequence[Condition],
    entries: list[dict[str, Any]],
    folder: Path,
) -> Guidance:
    names = [condition.name for condition in conditions]
    lines = tally(entries, names, CFG)
    asked = {name: prompt for batch in settings.asked() for name, prompt in batch}
    frechet = distances(entries, names, asked, folder)
    spent = _costs(entries, conditions, settings)
    record = {
        "format": FORMAT,
        "benchmark": "guidance",
        **run,
        "features": {
            "weights": sha256_of(CLASSIFIER_FILE),
            "scenes_a_prompt": SCENES_A_PROMPT,
            "resamples": RESAMPLES,
        },
        "results": [line.to_plain() for line in lines],
        "frechet": frechet.to_plain(),
        "costs": spent,
        "prompts": {name: {"text": p.text, "seed": p.seed} for name, p in asked.items()},
        "verdicts": {
            name: {e["id"]: e["verdict"] for e in entries if e["condition"] == name}
            for name in names
        },
    }
    return Guidance(record, lines, frechet, spent, entries, folder)


def distances(
    entries: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    asked: Mapping[str, Prompt],
    folder: Path,
    reference: str = CFG,
) -> FrechetTable:
    """Compare the pictures of every condition to rendered scenes.

    Args:
        entries: One record a picture.
        names: The conditions, the reference among them.
        asked: Prompts by the ids of the records.
        folder: Where the pictures lie.
        reference: The condition that the others are compared to.
    """
    files = {(entry["condition"], entry["id"]): folder / str(entry["file"]) for entry in entries}
    pictures = {name: to_batch([open_picture(files[name, one]) for one in asked]) for name in names}
    return measure_distances(pictures, list(asked.values()), reference)


def _costs(
    entries: Sequence[Mapping[str, Any]],
    conditions: Sequence[Condition],
    settings: SteeringSettings,
) -> list[dict[str, Any]]:
    """Times as `costs` gives them, and denoiser rows a picture and step, which never vary."""
    times = costs(entries, [condition.name for condition in conditions], CFG)
    return [
        {
            "condition": condition.name,
            "rows": _rows(condition, settings),
            "seconds": time["seconds"],
            "time_ratio": time["time_ratio"],
        }
        for condition, time in zip(conditions, times, strict=True)
    ]


def _rows(condition: Condition, settings: SteeringSettings) -> int:
    from attnctl.registry import build

    guided = int(condition.guidance_or(settings.guidance) > 1)
    added = sum(len(build(name, given).needs().rows) for name, given in condition.techniques)
    return 1 + guided + added


def choose_of(done: Guidance, grid: Sequence[Setting]) -> list[Setting]:
    """Choose among the settings of a finished sweep, and write the choice beside it."""
    names = [setting.name for setting in grid]
    exact = {name: done.line("exact", name).share for name in names}
    distance = {row.condition: row.distance for row in done.frechet.rows}
    chosen = choose(grid, exact, distance)
    write_text(done.folder / CHOICE_FILE, choice_text(chosen))
    return chosen


def _sheet(done: Guidance, most: int = 4) -> Image.Image:
    """Draw the first prompts of each number of objects in every condition."""
    settings = done.record["settings"]
    by_number = [
        [e for e in done.entries if e["condition"] == CFG and len(e["wanted"]) == number][:most]
        for number in settings["objects"]
    ]
    shown = [entry for group in by_number for entry in group]
    line = Image.new("RGB", (CELL_PX, 1), PAPER)
    rows = [Row("prompt", [Cell(line, str(entry["prompt"])) for entry in shown])]
    places = {(entry["condition"], entry["id"]): entry for entry in done.entries}
    for name in done.conditions:
        twins = [places[name, entry["id"]] for entry in shown]
        rows.append(Row(name, [_cell(twin, done.folder) for twin in twins]))
    title = (
        f"First prompts of the list, not picked; {settings['model']}, {settings['split']} prompts,"
        f" {settings['steps']} steps, guidance {settings['guidance']:g} ({PLAIN}: 1)"
    )
    return draw_sheet(rows, title=title)


def _cell(entry: Mapping[str, Any], folder: Path) -> Cell:
    image = open_picture(folder / str(entry["file"]))
    return Cell(image, str(entry["verdict"]), bool(entry["exact"]))
