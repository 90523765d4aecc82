"""Clips of suites of ``bench effect``: made once and kept, compared in pairs, shown on a sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from attnctl.bench.conditions import Condition
from attnctl.bench.effect.lines import Outcome, of_numbers
from attnctl.bench.effect.parts import Work
from attnctl.bench.journal import Journal
from attnctl.bench.pictures import is_whole, pixels_hash
from attnctl.bench.statistics import median
from attnctl.bench.video.measure import split_strip, strip
from attnctl.imaging import open_picture, save_png
from attnctl.pipelines.video_sheets import shown_frames  # pyright: ignore[reportMissingImports]
from attnctl.sheets import Cell, Row, draw_sheet

SHOWN_FRAMES = 8

Record = dict[str, Any]
"""One clip: ``id``, ``condition``, ``prompt``, ``verdicts`` and ``right`` of every frame (``None``
where a frame is not judged), ``file``, ``pixels``, ``seconds``, and what its suite measures."""

Make = Callable[[Condition, str, Any], Record]
"""Makes the clip of a condition, the id of a case, and the case."""

Given = Mapping[str, tuple[str, Tensor]]
"""A label and frames ``(F, 3, H, W)`` to show above the clips of a case, by its id."""


def collect(
    work: Work,
    run: Mapping[str, Any],
    conditions: Sequence[Condition],
    asked: Sequence[tuple[str, Any]],
    make: Make,
) -> list[Record]:
    """Make what is not there yet; case by case, every condition has its turn.

    Args:
        work: With the folder for the journal and the clips.
        run: Plain values that decide about every clip.
        conditions: Ways to make clips.
        asked: Ids and cases.
        make: Makes one clip.

    Returns:
        One record a clip, cases in order.

    Raises:
        SettingError: the folder holds another run.
    """
    journal = Journal(work.folder, run)
    journal.open(resume=work.resume)
    records: list[Record] = []
    for place, (name, case) in enumerate(asked):
        for condition in conditions:
            record = journal.get(condition.name, name)
            if record is None or not is_whole(work.folder / record["file"], record["pixels"]):
                journal.forget(condition.name, [name])
                record = make(condition, name, case)
                journal.add([record])
            records.append(record)
        work.say(f"clip {place + 1} of {len(asked)}")
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
    work: Work, records: Sequence[Record], names: Sequence[str], given: Given | None = None
) -> Path:
    """Write the sheet of some cases, one condition a row.

    Args:
        work: With the folder of the clips.
        records: Of all clips.
        names: Ids of the cases.
        given: What is shown above them.

    Returns:
        Its path.
    """
    rows: list[Row] = []
    for name in names:
        if given:
            label, frames = given[name]
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
    pixels = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
    cells = [
        Cell(Image.fromarray(pixels[t]), f"{t}: {verdicts[t]}" if verdicts[t] else f"{t}", right[t])
        for t in shown_frames(len(frames), SHOWN_FRAMES)
    ]
    return Row(label, cells)
