"""Pictures of cases by condition, each made once: what suites with cases of their own share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.conditions import Condition
from attnctl.bench.effect.lines import Outcome, of_answers, of_numbers
from attnctl.bench.effect.parts import Work
from attnctl.bench.journal import Journal
from attnctl.bench.pictures import is_whole, pixels_hash
from attnctl.bench.statistics import median
from attnctl.imaging import open_picture, save_png
from attnctl.sheets import Row, draw_sheet

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture and what was found out about it.

    Attributes:
        picture: RGB.
        scores: Plain values.
    """

    picture: Image.Image
    scores: Mapping[str, Any]


class Gallery:
    """Pictures on disk with a journal, so that a run that was stopped goes on.

    Args:
        work: What the suite was given.
        run: Plain values that decide about every picture.

    Raises:
        SettingError: the folder holds another run, or one that is not to be resumed.
    """

    def __init__(self, work: Work, run: Mapping[str, Any]) -> None:
        self.folder = work.folder
        self._journal = Journal(work.folder, run)
        self._journal.open(resume=work.resume)
        self._records: list[Record] = []

    def get(
        self,
        condition: str,
        case: str,
        make: Callable[[], Shot],
        prepare: Callable[[], None] = lambda: None,
    ) -> Record:
        """The record of a picture.

        Args:
            condition: In which way it is made.
            case: Id of the case.
            make: Makes it if it is not there, and is timed.
            prepare: Is called before, and is not timed.
        """
        record = self._journal.get(condition, case)
        if record is None or not is_whole(self.folder / record["file"], record["pixels"]):
            self._journal.forget(condition, [case])
            prepare()
            record = self._add(condition, case, make)
        self._records.append(record)
        return record

    def _add(self, condition: str, case: str, make: Callable[[], Shot]) -> Record:
        started = time.perf_counter()
        shot = make()
        seconds = time.perf_counter() - started
        file = f"pictures/{case}-{Condition(condition).slug}.png"
        save_png(shot.picture, self.folder / file, dict(shot.scores))
        record = {
            "id": case,
            "condition": condition,
            **shot.scores,
            "file": file,
            "pixels": pixels_hash(shot.picture),
            "seconds": seconds,
        }
        self._journal.add([record])
        return record

    def picture(self, record: Record) -> Image.Image:
        """The picture of a record."""
        return open_picture(self.folder / str(record["file"]))

    def of(self, condition: str) -> list[Record]:
        """Records of one condition, in the order of the cases."""
        return [record for record in self._records if record["condition"] == condition]

    def of_case(self, case: str) -> list[Record]:
        """Records of one case, in the order of the conditions."""
        return [record for record in self._records if record["id"] == case]

    def pairs(self, before: str, after: str) -> list[tuple[Record, Record]]:
        """Records of the cases that both conditions have."""
        known = {str(record["id"]): record for record in self.of(before)}
        return [(known[r["id"]], r) for r in self.of(after) if r["id"] in known]

    def compared(self, key: str, before: str, after: str) -> Outcome:
        """Compare two conditions by a score, more of which is better: answers or numbers."""
        old, new = ([r[key] for r in mine] for mine in zip(*self.pairs(before, after), strict=True))
        compare = of_answers if isinstance(new[0], bool) else of_numbers
        return compare(old, new, is_good=True)

    def cost(self, condition: str, setting: str, against: str) -> Record:
        """How long a condition takes, beside another one."""
        pairs = self.pairs(against, condition)
        return {
            "condition": condition, "setting": setting, "against": against,
            "seconds": median([new["seconds"] for _, new in pairs]),
            "time_ratio": median([new["seconds"] / old["seconds"] for old, new in pairs]),
        }  # fmt: skip

    def save_sheet(self, rows: Sequence[Row], title: str) -> Path:
        """Draw a contact sheet into the folder."""
        path = self.folder / "sheet.png"
        save_png(draw_sheet(rows, title=title), path)
        return path
