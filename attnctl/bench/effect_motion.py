"""Suite ``motion``: clips made from words, every frame verified, and how their objects move."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.effect_lines import EffectLine, Outcome, Subject, of_answers, of_numbers
from attnctl.bench.effect_parts import Part, Work, start_part
from attnctl.bench.effect_settings import MOTION, Parameters, setting_text
from attnctl.bench.journal import Journal
from attnctl.bench.pictures import is_whole, pixels_hash
from attnctl.bench.statistics import median
from attnctl.bench.video_bench import split_strip, strip
from attnctl.files import new_file
from attnctl.imaging import open_picture, save_png
from attnctl.pipelines.text_to_video import draw_videos  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.video_sheets import shown_frames  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe
from attnctl.shapes.captions import Prompt, prompts
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.shapes.evaluate_clips import judge
from attnctl.sheets import Cell, Row, draw_sheet

SUITE = "motion"
RIGHT, WHOLE = "frames all right", "clips right in every frame"
SPEED, SHAKE = "speed, px a frame", "shake, px"
OBJECTS = (1, 2)
"""Numbers of objects a prompt: half of the clips each."""

SHOWN_PROMPTS, SHOWN_FRAMES = 2, 8


@dataclass(frozen=True, slots=True)
class MotionEntry:
    """One technique for clips from words.

    Attributes:
        technique: Its name.
        parameters: Its settings.
        claims: Measures that it claims to move.
        source: Where its settings come from.
    """

    technique: str
    parameters: Parameters
    claims: tuple[str, ...]
    source: str

    @property
    def condition(self) -> Condition:
        """The way to draw with it."""
        return Condition(self.technique, ((self.technique, self.parameters),))


_AS_PICTURES = "as for pictures of shapes; not tuned for clips"
ENTRIES = (
    MotionEntry("broadway", {}, (SPEED,), "the authors' values for AnimateDiff"),
    MotionEntry("vico", {}, (RIGHT,), "the authors' values"),
    MotionEntry("vstar", {"sigmas": "64D1"}, (SPEED,), "the authors' preset for 16 frames"),
    MotionEntry("pag", {"scale": 1.0, "where": "down:self"}, (RIGHT,), _AS_PICTURES),
    MotionEntry("seg", {"scale": 1.0, "where": "down:self", "sigma": 2.0}, (RIGHT,), _AS_PICTURES),
    MotionEntry("cfg-zero-star", {"zero_steps": 0}, (RIGHT,), _AS_PICTURES),
    MotionEntry("apg", {"eta": 0.0, "norm_threshold": 15.0}, (RIGHT,), _AS_PICTURES),
)
TECHNIQUES = tuple(entry.technique for entry in ENTRIES)

Record = dict[str, Any]
Asked = Sequence[tuple[str, Prompt]]


def measure_motion(work: Work) -> Part | None:
    """Make clips with and without each technique, from the same prompts and seeds.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = [entry for entry in ENTRIES if work.wants(entry.technique)]
    if not wanted or work.model != MOTION:
        return None
    part = start_part(work, SUITE)
    usual = SamplingSettings()
    steps = usual.steps if work.settings.steps is None else work.settings.steps
    part.run["motion"] = {
        "steps": steps, "guidance": usual.guidance, "frames": work.settings.frames,
        "conditions": [entry.condition.to_plain() for entry in wanted],
    }  # fmt: skip
    asked = _asked(work)
    records = _collect(work, [Condition(PLAIN), *(e.condition for e in wanted)], asked, part.run)
    for entry in wanted:
        part.lines += _lines(entry, records)
        part.costs.append(_cost(entry, records))
    part.sheets["first"] = work.folder / "sheet.png"
    with new_file(part.sheets["first"]) as file:
        _sheet(work, records, asked[:SHOWN_PROMPTS]).save(file, format="PNG")
    return part


def _asked(work: Work) -> Asked:
    """Prompts with their ids, numbers of objects in turn."""
    count = work.settings.clips
    listed = [prompts(work.settings.split, number, -(-count // 2)) for number in OBJECTS]
    turns = [prompt for pair in zip(*listed, strict=True) for prompt in pair][:count]
    return [(f"{place:05d}", prompt) for place, prompt in enumerate(turns)]


def _collect(
    work: Work, conditions: Sequence[Condition], asked: Asked, run: Record
) -> list[Record]:
    """One record a clip; prompt by prompt, every condition has its turn."""
    journal = Journal(work.folder, run)
    journal.open(resume=work.resume)
    records: list[Record] = []
    for name, prompt in asked:
        for condition in conditions:
            record = journal.get(condition.name, name)
            if record is None or not is_whole(work.folder / record["file"], record["pixels"]):
                journal.forget(condition.name, [name])
                record = _make(work, condition, name, prompt, run["motion"])
                journal.add([record])
            records.append(record)
        work.say(f"clip {int(name) + 1} of {len(asked)}")
    return records


def _make(work: Work, condition: Condition, name: str, prompt: Prompt, run: Record) -> Record:
    recipe = Recipe.from_dict(
        {
            "model": work.model,
            "prompt": prompt.text,
            "seed": prompt.seed,
            "steps": run["steps"],
            "guidance": run["guidance"],
            "techniques": condition.entries([prompt]),
        },
        name="",
    )
    started = time.perf_counter()
    [made] = draw_videos(work.pipe, recipe, frames=run["frames"])
    seconds = time.perf_counter() - started
    picture = strip(made.video.tensor())
    file = f"pictures/{name}-{condition.slug}.png"
    save_png(picture, work.folder / file, made.record)
    found = judge(prompt, made.video.frames.astype(np.float32) / np.float32(255))
    return {
        "id": name,
        "condition": condition.name,
        "prompt": prompt.text,
        "seed": prompt.seed,
        "verdicts": [verdict.label() for verdict in found.frames],
        "right": [verdict.all_right for verdict in found.frames],
        "speed": _mean(found.speeds()),
        "shake": _mean(found.shakes()),
        "file": file,
        "pixels": pixels_hash(picture),
        "seconds": seconds,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _of(records: Sequence[Record], condition: str) -> list[Record]:
    return [record for record in records if record["condition"] == condition]


def _lines(entry: MotionEntry, records: Sequence[Record]) -> list[EffectLine]:
    """Lines of one technique, compared to plain clips."""
    setting = setting_text(entry.parameters)
    subject = Subject(SUITE, entry.technique, MOTION, setting, entry.source)
    plain, steered = _of(records, PLAIN), _of(records, entry.technique)
    shares = [[sum(r["right"]) / len(r["right"]) for r in mine] for mine in (plain, steered)]
    whole = [[all(r["right"]) for r in mine] for mine in (plain, steered)]
    came: dict[str, Outcome | None] = {
        RIGHT: of_numbers(*shares, is_good=True),
        WHOLE: of_answers(*whole, is_good=True),
        SPEED: _of_motion(plain, steered, "speed", is_good=True),
        SHAKE: _of_motion(plain, steered, "shake", is_good=False),
    }
    return [
        subject.line(measure, PLAIN, outcome, claimed=measure in entry.claims)
        for measure, outcome in came.items()
        if outcome is not None
    ]


def _of_motion(
    plain: Sequence[Record], steered: Sequence[Record], key: str, *, is_good: bool
) -> Outcome | None:
    """Compare how objects move in the clips that show them, with and without; none may do."""
    pairs = [(a[key], b[key]) for a, b in zip(plain, steered, strict=True)]
    seen = [pair for pair in pairs if None not in pair]
    return of_numbers(*zip(*seen, strict=True), is_good=is_good) if len(seen) > 1 else None


def _cost(entry: MotionEntry, records: Sequence[Record]) -> dict[str, Any]:
    seconds = {
        name: [r["seconds"] for r in _of(records, name)] for name in (PLAIN, entry.technique)
    }
    ratios = [new / old for old, new in zip(*seconds.values(), strict=True)]
    return {
        "condition": entry.technique, "setting": setting_text(entry.parameters), "against": PLAIN,
        "seconds": median(seconds[entry.technique]), "time_ratio": median(ratios),
    }  # fmt: skip


def _sheet(work: Work, records: Sequence[Record], asked: Asked) -> Image.Image:
    """Frames of the first clips, one condition a row."""
    rows: list[Row] = []
    for name, prompt in asked:
        for record in (r for r in records if r["id"] == name):
            frames = split_strip(open_picture(work.folder / str(record["file"])))
            pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
            cells = [
                Cell(
                    Image.fromarray(pixels[t]), f"{t}: {record['verdicts'][t]}", record["right"][t]
                )
                for t in shown_frames(len(frames), SHOWN_FRAMES)
            ]
            rows.append(Row(f"{prompt.text}: {record['condition']}", cells))
    return draw_sheet(rows, title=f"{work.model}: first prompts of the list, not picked")
