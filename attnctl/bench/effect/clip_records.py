"""Clips of suites of ``bench effect``: made once and kept, compared in pairs, shown on a sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from attnctl.bench.conditions import Condition
from attnctl.bench.effect.lines import EffectLine, Outcome, of_numbers
from attnctl.bench.effect.parts import Part, Work
from attnctl.bench.effect.settings import Parameters, setting_text
from attnctl.bench.journal import Journal
from attnctl.bench.pictures import is_whole, pixels_hash
from attnctl.bench.statistics import median
from attnctl.bench.video.measure import split_strip, strip
from attnctl.bench.video.ways import RATE
from attnctl.imaging import open_picture, save_png
from attnctl.pipelines.video_sheets import shown_frames  # pyright: ignore[reportMissingImports]
from attnctl.sheets import Cell, Row, draw_sheet
from attnctl.video import Video

SHOWN_FRAMES = 8

Record = dict[str, Any]
"""One clip: ``id``, ``condition``, ``prompt``, ``verdicts`` and ``right`` of every frame (``None``
where a frame is not judged), ``file``, ``pixels``, ``seconds``, and what its suite measures."""

Make = Callable[[Condition, str, Any], Record]
"""Makes the clip of a condition, the id of a case, and the case."""

Given = Sequence[tuple[str, Tensor]]
"""For each case a label and frames ``(F, 3, H, W)`` to show above its clips."""


@dataclass(frozen=True, slots=True)
class ClipMaker:
    """One technique for clips that are made from words.

    Attributes:
        technique: Its name.
        parameters: Its settings.
        source: Where its settings come from.
        claims: Measures that it claims to move.
        title: Name of its condition, if not that of the technique.
    """

    technique: str
    parameters: Parameters
    source: str
    claims: tuple[str, ...]
    title: str = ""

    @property
    def condition(self) -> Condition:
        """The way to draw with it."""
        return Condition(self.title or self.technique, ((self.technique, self.parameters),))


Lines = Callable[[ClipMaker, Sequence[Record]], list[EffectLine]]
"""Lines of a technique from the records of all clips."""


def compare(
    work: Work,
    part: Part,
    makers: Sequence[ClipMaker],
    against: str,
    cases: Sequence[Any],
    make: Make,
    lines: Lines,
) -> list[Record]:
    """Make the clips of all cases without and with each technique; add lines and costs.

    Args:
        work: What the suite was given.
        part: What it gives back.
        makers: The techniques.
        against: Name of the condition without any.
        cases: Their ids are their places.
        make: Makes one clip.
        lines: Compares the clips of a technique with those without.

    Returns:
        One record a clip, cases in order.

    Raises:
        SettingError: the folder holds another run.
    """
    conditions = [Condition(against), *(maker.condition for maker in makers)]
    records = collect(work, part.run, conditions, cases, make)
    for maker in makers:
        part.lines += lines(maker, records)
        setting = setting_text(maker.parameters)
        part.costs.append(cost_of(records, maker.condition.name, setting, against))
    return records


def case_name(place: int) -> str:
    """Id of a case, from its place."""
    return f"{place:05d}"


def collect(
    work: Work,
    run: Mapping[str, Any],
    conditions: Sequence[Condition],
    cases: Sequence[Any],
    make: Make,
) -> list[Record]:
    """Make what is not there yet; case by case, every condition has its turn.

    Args:
        work: With the folder for the journal and the clips.
        run: Plain values that decide about every clip.
        conditions: Ways to make clips.
        cases: Their ids are their places.
        make: Makes one clip.

    Returns:
        One record a clip, cases in order.

    Raises:
        SettingError: the folder holds another run.
    """
    journal = Journal(work.folder, run)
    journal.open(resume=work.resume)
    records: list[Record] = []
    for place, case in enumerate(cases):
        name = case_name(place)
        for condition in conditions:
            record = journal.get(condition.name, name)
            if record is None or not is_whole(work.folder / record["file"], record["pixels"]):
                journal.forget(condition.name, [name])
                record = make(condition, name, case)
                journal.add([record])
            records.append(record)
        work.say(f"clip {place + 1} of {len(cases)}")
    return records


def save_clip(
    folder: Path, name: str, condition: Condition, frames: Tensor, record: Mapping[str, Any] | None
) -> dict[str, str]:
    """Save frames ``(F, 3, H, W)`` side by side.

    Args:
        folder: Of the suite.
        name: Id of the case.
        condition: The way that they were made in.
        frames: In [0, 1].
        record: What belongs into the metadata of the picture.

    Returns:
        ``file``, within the folder, and ``pixels``, their hash.
    """
    picture = strip(frames)
    file = f"pictures/{name}-{condition.slug}.png"
    save_png(picture, folder / file, None if record is None else dict(record))
    return {"file": file, "pixels": pixels_hash(picture)}


def records_of(records: Sequence[Record], condition: str) -> list[Record]:
    """Clips of one condition, cases in order."""
    return [record for record in records if record["condition"] == condition]


def compare_seen(
    before: Sequence[Record], after: Sequence[Record], key: str, *, is_good: bool
) -> Outcome | None:
    """Compare a number in the pairs of clips that both have one; ``None`` for less than two."""
    pairs = [(a[key], b[key]) for a, b in zip(before, after, strict=True)]
    seen = [pair for pair in pairs if None not in pair]
    return of_numbers(*zip(*seen, strict=True), is_good=is_good) if len(seen) > 1 else None


def mean_or_none(values: Sequence[float]) -> float | None:
    """Mean of numbers, ``None`` of none."""
    return float(np.mean(values)) if values else None


def share_right(record: Record) -> float:
    """Share of the judged frames that are right."""
    judged = [one for one in record["right"] if one is not None]
    return sum(judged) / len(judged)


def cost_of(
    records: Sequence[Record], condition: str, setting: str, against: str
) -> dict[str, Any]:
    """Median time of a condition, and how many times as long as another one it takes."""
    seconds = {name: [r["seconds"] for r in records_of(records, name)] for name in
               (against, condition)}  # fmt: skip
    ratios = [new / old for old, new in zip(*seconds.values(), strict=True)]
    return {
        "condition": condition, "setting": setting, "against": against,
        "seconds": median(seconds[condition]), "time_ratio": median(ratios),
    }  # fmt: skip


def save_sheet(
    work: Work, records: Sequence[Record], shown: int, given: Given | None = None
) -> Path:
    """Write the sheet of the first cases, one condition a row.

    Args:
        work: With the folder of the clips.
        records: Of all clips.
        shown: Number of cases, at most.
        given: What is shown above them.

    Returns:
        Its path.
    """
    rows: list[Row] = []
    names = list(dict.fromkeys(record["id"] for record in records))[:shown]
    for place, name in enumerate(names):
        if given:
            label, frames = given[place]
            rows.append(_row(label, frames, [""] * len(frames), [None] * len(frames)))
        for record in (r for r in records if r["id"] == name):
            frames = split_strip(open_picture(work.folder / str(record["file"])))
            label = f"{record['prompt']}: {record['condition']}"
            rows.append(_row(label, frames, record["verdicts"], record["right"]))
    path = work.folder / "sheet.png"
    title = f"{work.model}: first prompts of the list, not picked"
    save_png(draw_sheet(rows, title=title), path)
    return path


def _row(label: str, frames: Tensor, verdicts: Sequence[str], right: Sequence[bool | None]) -> Row:
    pixels = Video.of_tensor(frames, RATE).frames
    cells = [
        Cell(Image.fromarray(pixels[t]), f"{t}: {verdicts[t]}" if verdicts[t] else f"{t}", right[t])
        for t in shown_frames(len(frames), SHOWN_FRAMES)
    ]
    return Row(label, cells)
