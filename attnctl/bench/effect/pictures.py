"""Suite ``pictures``: verified pictures, and their distance to rendered scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.effect.lines import EffectLine, Outcome, Subject, of_answers
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import (
    CHANGED,
    DISTANCE,
    Entry,
    conditions_of,
    entries_of,
)
from attnctl.bench.guidance.measure import distances
from attnctl.bench.quality import Distance
from attnctl.bench.sheets import save_sheets
from attnctl.bench.steering import Steering, SteeringSettings, collect, costs
from attnctl.bench.tally import MEASURES, Line, tally
from attnctl.shapes.evaluate import sampling_of

SUITE = "pictures"
SHOWN = 8
"""Prompts of each number of objects on a sheet, and changes in each direction."""

LEAST = 40
"""Fewer pictures say nothing about a distance of sets."""

Records = Sequence[Mapping[str, Any]]


def measure_pictures(work: Work) -> Part | None:
    """Draw, verify and compare; plain pictures of the same guidance stand beside each technique.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = entries_of(work.model, work.settings.choice, work.names)
    if not wanted:
        return None
    part = start_part(work, SUITE)
    for guidance in sorted({entry.guidance for entry in wanted}):
        group = [entry for entry in wanted if entry.guidance == guidance]
        _add(part, draw_group(work, conditions_of(group), guidance), group)
    return part


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of one guidance weight in all conditions.

    Attributes:
        settings: What was drawn.
        conditions: In which ways, plain first.
        run: Everything that decides about the pictures.
        records: One record a picture.
        folder: Where they lie.
    """

    settings: SteeringSettings
    conditions: list[Condition]
    run: dict[str, Any]
    records: list[dict[str, Any]]
    folder: Path

    @property
    def names(self) -> list[str]:
        """Names of the conditions."""
        return [condition.name for condition in self.conditions]

    def of(self, condition: str) -> list[dict[str, Any]]:
        """Records of one condition by id."""
        mine = (record for record in self.records if record["condition"] == condition)
        return sorted(mine, key=lambda record: str(record["id"]))

    def counted(self, reference: str) -> dict[tuple[str, str], Line]:
        """Counts over all prompts by measure and condition, compared to a reference."""
        listed = tally(self.records, self.names, reference)
        return {(line.measure, line.condition): line for line in listed}  # all prompts come last

    def distances(self, reference: str) -> dict[str, Distance]:
        """Distances to rendered scenes by condition, compared to a reference."""
        asked = {name: prompt for batch in self.settings.asked() for name, prompt in batch}
        table = distances(self.records, self.names, asked, self.folder, reference)
        return {row.condition: row for row in table.rows}


def draw_group(
    work: Work, conditions: list[Condition], guidance: float, split: str | None = None
) -> Drawn:
    """Draw all conditions with one weight of guidance, in a sub-folder of its own."""
    usual, asked = sampling_of(work.pipe), work.settings
    settings = SteeringSettings(
        work.model,
        asked.objects,
        asked.count,
        split or asked.split,
        asked.steps_or(usual.steps),
        guidance,
        asked.batch_size,
    )
    folder = work.folder / f"guidance-{guidance:g}"
    run, records = collect(
        *(work.pipe, settings, conditions, folder),
        resume=work.resume,
        on_step=None,
        say=work.say,
        options=usual.options,
    )
    return Drawn(settings, conditions, run, records, folder)


def _add(part: Part, drawn: Drawn, group: Sequence[Entry]) -> None:
    """Add lines, costs and sheets of one guidance weight."""
    counts, away = drawn.counted(PLAIN), drawn.distances(PLAIN)
    singles = {entry.name for entry in group}
    loose = [
        Entry(part.model, (p,), entry.guidance, (), entry.source, note="as a part of recipes")
        for entry in group
        for p in entry.parts
        if p[0] not in singles
    ]
    listed = {entry.title: entry for entry in (*loose, *group)}
    for entry in listed.values():
        part.lines += _lines(entry, drawn, counts, away, PLAIN)
    for entry in (entry for entry in group if entry.is_recipe):
        for name in (name for name, _ in entry.parts):
            less = replace(drawn, conditions=[Condition(name), Condition(entry.title)])
            less = replace(less, records=[*drawn.of(name), *drawn.of(entry.title)])
            part.lines += _lines(entry, less, less.counted(name), less.distances(name), name)
    for cost in costs(drawn.records, drawn.names):
        known = listed.get(str(cost["condition"]))
        setting = f"guidance {drawn.settings.guidance:g}" if known is None else known.setting
        part.costs.append({**cost, "setting": setting, "against": PLAIN})
    steering = Steering(drawn.run, [], drawn.records, drawn.folder)
    for name, path in save_sheets(steering, SHOWN).items():
        number = name.partition("-")[2]
        shown = f"changed by {drawn.names[int(number)]}" if number else name
        part.sheets[f"guidance {drawn.settings.guidance:g}: {shown}"] = path


def _lines(
    entry: Entry,
    drawn: Drawn,
    counts: Mapping[tuple[str, str], Line],
    away: Mapping[str, Distance],
    reference: str,
) -> list[EffectLine]:
    """Lines of one technique or recipe, compared to a reference."""
    subject = Subject(SUITE, entry.name, entry.model, entry.setting, entry.source, entry.note)
    if CHANGED in entry.claims:
        return [subject.line(CHANGED, reference, _changed(drawn, entry.title), claimed=True)]
    made = [
        subject.line(
            measure.name,
            reference,
            _of_count(counts[measure.name, reference], counts[measure.name, entry.title]),
            claimed=measure.name in entry.claims,
        )
        for measure in MEASURES
    ]
    came = _of_distance(away[reference], away[entry.title], len(drawn.of(entry.title)))
    note = "" if came.is_enough else "too few pictures to judge a distance by"
    claimed = DISTANCE in entry.claims
    return [*made, subject.line(DISTANCE, reference, came, claimed=claimed, note=note)]


def _of_count(plain: Line, steered: Line) -> Outcome:
    assert steered.difference is not None  # it is not the reference
    assert steered.difference_interval is not None
    is_good = next(m.is_good for m in MEASURES if m.name == steered.measure)
    return Outcome(
        *(steered.count, plain.share, steered.share, steered.difference),
        *(steered.difference_interval, steered.p_value, is_good),
    )


def _of_distance(plain: Distance, steered: Distance, count: int) -> Outcome:
    """A distance belongs to a set of pictures: there are no pairs, and so no test."""
    assert steered.difference is not None  # it is not the reference
    assert steered.difference_interval is not None
    return Outcome(
        *(count, plain.distance, steered.distance, steered.difference),
        *(steered.difference_interval, None, False, count >= LEAST),
    )


def _changed(drawn: Drawn, name: str) -> Outcome:
    plain, steered = ([r["pixels"] for r in drawn.of(n)] for n in (PLAIN, name))
    differ = [a != b for a, b in zip(plain, steered, strict=True)]
    return of_answers([False] * len(differ), differ, is_good=False)
