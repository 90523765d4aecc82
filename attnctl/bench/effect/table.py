"""Which steering works: every technique beside what it claims to be better than, in one table.

Suites measure in sub-folders with journals of their own; the table is made of all that lie in the
folder, so that several calls fill one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctl.bench.effect.coverage import SUITES, check_names, known_names, reason_for, suites_of
from attnctl.bench.effect.lines import EffectLine, corrected, unmeasured
from attnctl.bench.effect.parts import PART_FILE, EffectSettings, Part, Work, folder_name
from attnctl.bench.effect.settings import MODELS
from attnctl.errors import SettingError
from attnctl.files import write_json
from attnctl.registry import techniques

FORMAT = 1
RESULT_FILE, COSTS_FILE = "effect.json", "effect-costs.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """Which part of the table is wanted; empty tuples take everything.

    Attributes:
        suites: Names of suites.
        techniques: Names of techniques and recipes.
        models: Names of models.

    Raises:
        SettingError: a name is not known.
    """

    suites: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    models: tuple[str, ...] = MODELS

    def __post_init__(self) -> None:
        check_names("--suite", self.suites, list(SUITES))
        check_names("--model", self.models, MODELS)
        check_names("--technique", self.techniques, known_names())


@dataclass(frozen=True, slots=True)
class Effect:
    """The table of a folder.

    Attributes:
        record: Plain values; two runs on one machine give the same.
        lines: The table, techniques that cannot be measured among them.
        missing: Techniques that a suite would measure and has not yet: suite, model, name.
        costs: Times, which differ from run to run.
        sheets: Contact sheets by suite, model and what they show.
        folder: Where everything lies.
    """

    record: dict[str, Any]
    lines: list[EffectLine]
    missing: list[tuple[str, str, str]]
    costs: list[dict[str, Any]]
    sheets: dict[str, Path]
    folder: Path


def measure(
    settings: EffectSettings,
    asked: Asked,
    folder: Path,
    load: Callable[[str], Any],
    *,
    resume: bool = False,
    say: Say = lambda _text: None,
) -> Effect:
    """Measure what is asked for, and make the table of all that the folder holds.

    Args:
        settings: How much is measured.
        asked: Which part of the table.
        folder: For sub-folders of suites, and the table.
        load: Loads a bundled model by its name.
        resume: Go on with a run that was stopped.
        say: Told how far it is.

    Raises:
        SettingError: the folder holds a run that this one cannot be added to.
    """
    _check_folder(folder, settings)
    for model in asked.models:
        pipe = None
        for suite in asked.suites or SUITES:
            at = folder / folder_name(suite, model, _names_of(asked, suite, model))
            if not _has_work(asked, suite, model):
                continue
            pipe = pipe or load(model)
            tell = _teller(say, suite, model)
            work = Work(pipe, model, settings, asked.techniques, at, resume, tell)
            part = SUITES[suite](work)
            if part is not None:
                part.save(at)
    return conclude(folder)


def _names_of(asked: Asked, suite: str, model: str) -> list[str]:
    """The named techniques that a suite measures on a model; none if all are wanted."""
    return [name for name in asked.techniques if suite in suites_of(name, model)]


def _has_work(asked: Asked, suite: str, model: str) -> bool:
    names = asked.techniques or known_names()
    return any(suite in suites_of(name, model) for name in names)


def _teller(say: Say, suite: str, model: str) -> Say:
    return lambda text: say(f"{suite}, {model}: {text}")


def parts_of(folder: Path) -> dict[str, Part]:
    """Finished parts by the names of their sub-folders."""
    return {
        file.parent.name: Part.load(file.parent) for file in sorted(folder.glob(f"*/{PART_FILE}"))
    }


def _check_folder(folder: Path, settings: EffectSettings) -> None:
    """One table reports one list of prompts."""
    for name, part in parts_of(folder).items():
        split = part.run["settings"]["split"]
        if split != settings.split:
            raise SettingError(
                f"{str(folder)!r} holds {name!r} with --split {split}, and one table has one list"
                f" of prompts; give another folder with --out for --split {settings.split}"
            )


def conclude(folder: Path) -> Effect:
    """Make the table of everything that lies in a folder, and write it.

    Raises:
        SettingError: parts were measured with different weights of one model.
    """
    parts = parts_of(folder)
    _check_weights(parts)
    lines = _joined(list(parts.values()))
    lines += [unmeasured(*pair, reason_for(*pair)) for pair in _pairs() if not suites_of(*pair)]
    lines = corrected(sorted(lines, key=_order))
    seen = {(line.suite, line.model, line.technique) for line in lines}
    listed = [(suite, model, n) for n, model in _pairs() for suite in suites_of(n, model)]
    missing = [one for one in listed if one not in seen]
    record = {
        "format": FORMAT,
        "benchmark": "effect",
        "runs": {name: part.run for name, part in parts.items()},
        "lines": [line.to_plain() for line in lines],
        "not measured yet": missing,
    }
    costs = [
        {"suite": part.suite, "model": part.model, **cost}
        for part in parts.values()
        for cost in part.costs
    ]
    write_json(folder / RESULT_FILE, record)
    write_json(folder / COSTS_FILE, costs)
    sheets = {f"{name}: {n}": p for name, part in parts.items() for n, p in part.sheets.items()}
    return Effect(record, lines, missing, costs, sheets, folder)


def _pairs() -> list[tuple[str, str]]:
    return [(name, model) for model in MODELS for name in techniques()]


def _joined(parts: Sequence[Part]) -> list[EffectLine]:
    """Lines of all parts; of two about the same, the one with more cases."""
    found: dict[tuple[str, ...], EffectLine] = {}
    listed = [line for part in parts for line in part.lines]
    measured = {(line.model, line.technique) for line in listed if line.count}
    for line in listed:
        if not line.count and (line.model, line.technique) in measured:
            continue
        known = found.get(line.key)
        if known is None or line.count > known.count:
            found[line.key] = line
    return list(found.values())


def _order(line: EffectLine) -> tuple[Any, ...]:
    """Models, suites, recipes behind single techniques, techniques; measures stay as they are."""
    suites = [*SUITES, ""]
    return (
        MODELS.index(line.model), suites.index(line.suite), line.is_recipe, line.technique,
    )  # fmt: skip


def _check_weights(parts: dict[str, Part]) -> None:
    first: dict[str, tuple[str, str]] = {}
    for name, part in parts.items():
        other, weights = first.setdefault(part.model, (name, part.run["weights"]))
        if weights != part.run["weights"]:
            raise SettingError(
                f"{name!r} and {other!r} were measured with different weights of {part.model!r};"
                " delete one of them"
            )
