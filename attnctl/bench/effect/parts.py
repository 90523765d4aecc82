"""What one suite of ``bench effect`` is given for one model, and what it gives back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from attnctl.bench.effect.lines import EffectLine
from attnctl.bench.effect.settings import Choice, ModelChoice
from attnctl.bench.machine import fingerprint, machine_record
from attnctl.errors import SettingError
from attnctl.files import write_json, write_text

PART_FILE, COSTS_FILE = "part.json", "costs.json"
REPORTED = "validation"
LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class EffectSettings:
    """How much is measured.

    Attributes:
        split: List of prompts, edits and clips: ``validation``, or a whole number for one of its
            own. Settings were chosen on ``tuning``, so that is refused.
        count: Prompts for each number of objects.
        objects: Numbers of objects a prompt.
        edits: Edits a method.
        cases: Given scenes, and given characters.
        clips: Clips a condition.
        frames: Frames of a clip.
        fast: Prompts for each number of objects, of fast attention.
        repeats: Timed rounds of fast attention; 0 leaves its times out.
        steps: Denoising steps; ``None`` takes the usual ones of each model and suite.
        batch_size: Pictures made together.
        choice: Parameters in place of the built-in ones, as a tuning run chose them.
    """

    split: str = REPORTED
    count: int = 20
    objects: tuple[int, ...] = (2, 3)
    edits: int = 20
    cases: int = 8
    clips: int = 4
    frames: int = 16
    fast: int = 2
    repeats: int = 1
    steps: int | None = None
    batch_size: int = 8
    choice: Choice = field(default_factory=dict[str, ModelChoice])

    def __post_init__(self) -> None:
        if self.split != REPORTED and not re.fullmatch(r"\d{1,18}", self.split):
            raise SettingError(
                f"--split {self.split!r} must be {REPORTED!r} or a whole number: settings were"
                " chosen on other prompts, and are never reported on them"
            )
        if self.count * len(self.objects) < 2:
            raise SettingError("--count 1 of one --objects is one picture; two make the least set")
        if self.cases < 1:
            raise SettingError(f"--cases {self.cases} must be 1 or more")
        if self.repeats < 0:
            raise SettingError(f"--repeats {self.repeats} must be 0 or more")

    def steps_or(self, usual: int) -> int:
        """Denoising steps, or the usual number if none was asked for."""
        return usual if self.steps is None else self.steps

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        chosen = {model: mine.model_dump(mode="json") for model, mine in self.choice.items()}
        return asdict(replace(self, choice={})) | {"choice": chosen}


@dataclass(frozen=True, slots=True)
class Work:
    """What a suite is given.

    Attributes:
        pipe: The pipeline.
        model: Its name.
        settings: How much is measured.
        names: Techniques and recipes that are wanted; empty: all.
        folder: For pictures and journals of this suite and model alone.
        resume: Go on with a run that was stopped.
        say: Told how far it is.
    """

    pipe: Any
    model: str
    settings: EffectSettings
    names: tuple[str, ...]
    folder: Path
    resume: bool
    say: Callable[[str], None]

    def wants(self, *names: str) -> bool:
        """Whether any of these techniques or recipes is to be measured."""
        return not self.names or any(name in self.names for name in names)


@dataclass(slots=True)
class Part:
    """What a suite found out on one model.

    Attributes:
        suite: Its name.
        model: Name of the model.
        run: Plain values that decide about the result.
        lines: Lines of the table.
        costs: Times, which differ from run to run.
        sheets: Contact sheets by name.
    """

    suite: str
    model: str
    run: dict[str, Any]
    lines: list[EffectLine] = field(default_factory=list[EffectLine])
    costs: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    sheets: dict[str, Path] = field(default_factory=dict[str, Path])

    def save(self, folder: Path) -> None:
        """Write it as JSON; times go to a file of their own."""
        plain = {
            "suite": self.suite,
            "model": self.model,
            "run": self.run,
            "sheets": {name: str(p.relative_to(folder)) for name, p in self.sheets.items()},
            "lines": [line.to_plain() for line in self.lines],
        }
        write_text(folder / COSTS_FILE, json.dumps(self.costs, indent=1) + "\n")
        write_json(folder / PART_FILE, plain)

    @classmethod
    def load(cls, folder: Path) -> Part:
        """Read what :meth:`save` wrote."""
        plain = json.loads((folder / PART_FILE).read_text(encoding="utf-8"))
        return cls(
            plain["suite"],
            plain["model"],
            plain["run"],
            [EffectLine.of_plain(values) for values in plain["lines"]],
            json.loads((folder / COSTS_FILE).read_text(encoding="utf-8")),
            {name: folder / file for name, file in plain["sheets"].items()},
        )


def start_part(work: Work, suite: str) -> Part:
    """A part without lines, whose run says what was measured with what."""
    run = {
        "settings": work.settings.to_plain(),
        "weights": fingerprint(work.pipe),
        "machine": machine_record(str(work.pipe.device)),
    }
    return Part(suite, work.model, run)


def folder_name(suite: str, model: str, names: Sequence[str]) -> str:
    """Name of the sub-folder of a suite, a model and what of it is wanted."""
    wanted = "+".join(sorted(names))
    if len(wanted) > LONGEST_NAME:
        wanted = hashlib.sha256(wanted.encode()).hexdigest()[:12]
    return "-".join(text for text in (suite, model, wanted) if text)
