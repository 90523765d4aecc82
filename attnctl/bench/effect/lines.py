"""Lines of the table of effects: what was compared, how it came out, and what that says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from attnctl.bench.statistics import (
    Interval,
    Paired,
    bootstrap_interval,
    holm,
    newcombe_interval,
    sign_test,
)

HELPS, HARMS, NOTHING_SEEN = "helps", "harms", "no measurable effect"
UNMEASURED = "not measurable here"
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one measure came out with a technique and with what it is compared to.

    Attributes:
        count: Cases in pairs.
        baseline: Share or mean of what it is compared to; ``None`` if there is no such thing.
        steered: Share or mean with the technique.
        difference: Steered minus baseline.
        interval: 95 percent interval of the difference; of ``steered`` without a baseline.
        p_value: Two-sided, paired; ``None`` where there is no test.
        is_good: Whether more is better.
        is_enough: Whether there are enough cases for the interval to mean anything.
    """

    count: int
    baseline: float | None
    steered: float
    difference: float | None
    interval: Interval
    p_value: float | None
    is_good: bool
    is_enough: bool = True

    @property
    def verdict(self) -> str:
        """What the interval and the test say together; without a baseline nothing."""
        low, high = self.interval
        is_sure = self.is_enough and (self.p_value is None or self.p_value < LEVEL)
        if self.difference is None or low <= 0 <= high or not is_sure:
            return NOTHING_SEEN
        return HELPS if (low > 0) == self.is_good else HARMS


@dataclass(frozen=True, slots=True)
class EffectLine:
    """One measure of one technique, or recipe, on one model.

    Attributes:
        suite: What it was measured with; empty if it was not.
        technique: Its name; of a recipe the names joined by ``+``.
        model: Name of the model.
        setting: Settings in words.
        measure: What was measured.
        claimed: Whether the technique claims to move it, or to leave it alone.
        count: Cases in pairs.
        baseline_name: What it is compared to.
        baseline: Share or mean of that.
        steered: Share or mean with the technique.
        difference: Steered minus baseline.
        interval: 95 percent interval of the difference; of ``steered`` without a baseline.
        p_value: Two-sided, paired, not corrected for the number of comparisons.
        verdict: One of `HELPS`, `HARMS`, `NOTHING_SEEN` and `UNMEASURED`.
        note: What a reader must know.
        source: Where the settings were chosen.
        p_holm: The same p corrected by Holm's method over the claimed lines of the table.
    """

    suite: str
    technique: str
    model: str
    setting: str
    measure: str
    claimed: bool
    count: int
    baseline_name: str
    baseline: float | None
    steered: float | None
    difference: float | None
    interval: Interval | None
    p_value: float | None
    verdict: str
    note: str = ""
    source: str = ""
    p_holm: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What no two lines of a table share."""
        return (self.model, self.technique, self.setting, self.measure, self.baseline_name)

    @property
    def is_recipe(self) -> bool:
        """Whether it is about several techniques together."""
        return "+" in self.technique

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return asdict(self)

    @classmethod
    def of_plain(cls, values: dict[str, Any]) -> EffectLine:
        """The inverse of :meth:`to_plain`, from JSON."""
        line = cls(**values)
        pair = line.interval
        return line if pair is None else replace(line, interval=(pair[0], pair[1]))


@dataclass(frozen=True, slots=True)
class Subject:
    """What lines are about.

    Attributes:
        suite: What measures it.
        technique: Its name.
        model: Name of the model.
        setting: Settings in words.
        source: Where the settings were chosen.
        note: What a reader of every line must know.
    """

    suite: str
    technique: str
    model: str
    setting: str
    source: str
    note: str = ""

    def line(
        self, measure: str, against: str, came: Outcome, *, claimed: bool, note: str = ""
    ) -> EffectLine:
        """The line of one measure."""
        return EffectLine(
            suite=self.suite,
            technique=self.technique,
            model=self.model,
            setting=self.setting,
            measure=measure,
            claimed=claimed,
            count=came.count,
            baseline_name=against,
            baseline=came.baseline,
            steered=came.steered,
            difference=came.difference,
            interval=came.interval,
            p_value=came.p_value,
            verdict=came.verdict,
            note="; ".join(text for text in (self.note, note) if text),
            source=self.source,
        )


def unmeasured(technique: str, model: str, reason: str, suite: str = "") -> EffectLine:
    """The line of a technique that cannot be measured on a model."""
    return EffectLine(
        suite=suite,
        technique=technique,
        model=model,
        setting="",
        measure="",
        claimed=False,
        count=0,
        baseline_name="",
        baseline=None,
        steered=None,
        difference=None,
        interval=None,
        p_value=None,
        verdict=UNMEASURED,
        note=reason,
    )


def of_answers(before: Sequence[bool], after: Sequence[bool], *, is_good: bool) -> Outcome:
    """Compare yes-or-no outcomes of the same cases: Newcombe's interval, exact McNemar test."""
    pairs = Paired.count(before, after)
    total = pairs.total
    return Outcome(
        total,
        sum(before) / total,
        sum(after) / total,
        pairs.difference,
        newcombe_interval(pairs),
        sign_test(pairs.second, pairs.first),
        is_good,
    )


def of_numbers(before: Sequence[float], after: Sequence[float], *, is_good: bool) -> Outcome:
    """Compare numbers of the same cases: bootstrap of the mean difference, sign test."""
    changes = [new - old for old, new in zip(before, after, strict=True)]
    total = len(changes)
    return Outcome(
        total,
        sum(before) / total,
        sum(after) / total,
        sum(changes) / total,
        bootstrap_interval(changes, [1.0] * total),
        sign_test(sum(c > 0 for c in changes), sum(c < 0 for c in changes)),
        is_good,
    )


def of_mean(values: Sequence[float], *, is_good: bool) -> Outcome:
    """A mean that nothing stands beside."""
    total = len(values)
    interval = bootstrap_interval(list(values), [1.0] * total)
    return Outcome(total, None, sum(values) / total, None, interval, None, is_good)


def corrected(lines: Sequence[EffectLine]) -> list[EffectLine]:
    """Fill in Holm's p over the claimed lines that have a p; the order stays."""
    tested = [i for i, line in enumerate(lines) if line.claimed and line.p_value is not None]
    values = holm([float(lines[i].p_value or 0.0) for i in tested])
    found = dict(zip(tested, values, strict=True))
    return [replace(line, p_holm=found.get(i)) for i, line in enumerate(lines)]
