"""From verdicts to shares, intervals, differences and p-values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attnctl.bench.conditions import PLAIN
from attnctl.bench.statistics import (
    Interval,
    Paired,
    bootstrap_interval,
    newcombe_interval,
    sign_test,
    wilson_interval,
)

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is counted.

    Attributes:
        name: What tables call it.
        hits: How often a picture shows it.
        chances: How often it could; a measure of pictures has one chance each.
        is_good: Whether more is better.
    """

    name: str
    hits: Callable[[Entry], int]
    chances: Callable[[Entry], int]
    is_good: bool


def _one(_entry: Entry) -> int:
    return 1


MEASURES = (
    Measure("all right", lambda e: int(e["all_right"]), _one, True),
    Measure("exact", lambda e: int(e["exact"]), _one, True),
    Measure("an object absent", lambda e: int(e["absence"]), _one, False),
    Measure("too few objects", lambda e: int(e["neglect"]), _one, False),
    Measure("missing objects", lambda e: len(e["missing"]), lambda e: len(e["wanted"]), False),
)
"""All named objects right; nothing else besides; a named object with neither its colour nor its
shape anywhere; fewer components than named objects, which a duplicate hides (all of pictures); and
named objects that are not right (of objects)."""


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of one condition over one set of prompts.

    Attributes:
        objects: Objects a prompt, or ``"all"``.
        measure: Name of the measure.
        condition: Name of the condition.
        hits: How often it was so.
        count: How often it could have been.
        share: ``hits / count``.
        interval: 95 percent interval of the share.
        difference: Share minus that of the reference's pictures of the same prompts and seeds.
        difference_interval: 95 percent interval of the difference.
        better: Pictures that are better than their twin of the reference by this measure.
        worse: Pictures that are worse.
        p_value: Exact two-sided p-value for ``better`` against ``worse`` (McNemar).
    """

    objects: int | str
    measure: str
    condition: str
    hits: int
    count: int
    share: float
    interval: Interval
    difference: float | None = None
    difference_interval: Interval | None = None
    better: int | None = None
    worse: int | None = None
    p_value: float | None = None

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return asdict(self)


def tally(
    entries: Iterable[Entry], conditions: Sequence[str], reference: str = PLAIN
) -> list[Line]:
    """Count every measure for every condition, for each number of objects and for all prompts.

    Args:
        entries: One record a picture; every condition has the same prompts.
        conditions: Their names.
        reference: The condition that the others are compared to.
    """
    listed = list(entries)
    numbers = sorted({len(entry["wanted"]) for entry in listed})
    groups: list[int | str] = [*numbers, *(["all"] if len(numbers) > 1 else [])]
    lines: list[Line] = []
    for group in groups:
        chosen = [e for e in listed if group == "all" or len(e["wanted"]) == group]
        by_name = {name: _sorted(chosen, name) for name in conditions}
        for measure in MEASURES:
            lines += [_line(group, measure, name, reference, by_name) for name in conditions]
    return lines


def _sorted(entries: Sequence[Entry], condition: str) -> list[Entry]:
    return sorted((e for e in entries if e["condition"] == condition), key=lambda e: e["id"])


def _line(
    group: int | str,
    measure: Measure,
    condition: str,
    reference: str,
    by_name: Mapping[str, Sequence[Entry]],
) -> Line:
    mine, plain = by_name[condition], by_name[reference]
    hits, chances = [measure.hits(e) for e in mine], [measure.chances(e) for e in mine]
    is_yes_or_no = max(chances) == 1
    if is_yes_or_no:
        interval = wilson_interval(sum(hits), sum(chances))
    else:
        interval = bootstrap_interval(hits, chances)
    line = Line(
        group, measure.name, condition, sum(hits), sum(chances), sum(hits) / sum(chances), interval
    )
    if condition == reference:
        return line
    before = [measure.hits(e) for e in plain]
    changes = [now - then for now, then in zip(hits, before, strict=True)]
    more, less = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    better, worse = (more, less) if measure.is_good else (less, more)
    if is_yes_or_no:
        pairs = Paired.count([bool(b) for b in before], [bool(h) for h in hits])
        spread = newcombe_interval(pairs)
    else:
        spread = bootstrap_interval(changes, chances)
    return Line(
        *(line.objects, line.measure, line.condition, line.hits, line.count, line.share, interval),
        difference=sum(changes) / sum(chances),
        difference_interval=spread,
        better=better,
        worse=worse,
        p_value=sign_test(better, worse),
    )


HEAD = (
    "objects", "measure", "hits", "of", "share %", "95% interval",
    "difference", "95% interval", "better", "worse", "p", "condition",
)  # fmt: skip


def table(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Rows of text under `HEAD`; the long name of the condition stands last."""
    return [_row(line) for line in lines]


def _row(line: Line) -> tuple[str, ...]:
    low, high = line.interval
    row = [str(line.objects), line.measure, str(line.hits), str(line.count)]
    row += [f"{100 * line.share:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
    if line.difference is None or line.difference_interval is None or line.p_value is None:
        return (*row, "", "", "", "", "", line.condition)
    low, high = line.difference_interval
    row += [f"{100 * line.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]
    return (*row, str(line.better), str(line.worse), f"{line.p_value:.2g}", line.condition)
