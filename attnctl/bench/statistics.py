"""Intervals and tests for shares, unpaired and paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4000
RESAMPLING_SEED = 0

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Paired:
    """Two yes-or-no outcomes of the same cases.

    Attributes:
        both: Cases where both are yes.
        first: Cases where only the first is.
        second: Cases where only the second is.
        neither: Cases where none is.
    """

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def count(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """Count outcomes that are listed in the same order."""
        pairs = list(zip(first, second, strict=True))
        return cls(
            both=pairs.count((True, True)),
            first=pairs.count((True, False)),
            second=pairs.count((False, True)),
            neither=pairs.count((False, False)),
        )

    @property
    def total(self) -> int:
        """Number of cases."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """Share of the second outcome minus share of the first, in [-1, 1]."""
        return (self.second - self.first) / self.total


def wilson_interval(hits: int, count: int, confidence: float = 0.95) -> Interval:
    """Confidence interval of a share.

    Args:
        hits: Cases that are yes, 0 to ``count``.
        count: Cases, at least 1.
        confidence: In (0, 1).

    Returns:
        Lower and upper bound in [0, 1].

    Raises:
        ValueError: ``hits`` and ``count`` are no share.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if count < 1 or not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} is no share; give 0 <= hits <= count, count >= 1")
    z = _z(confidence)
    share = hits / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low = 0.0 if hits == 0 else (middle - spread) / scale
    high = 1.0 if hits == count else (middle + spread) / scale
    return low, high


def newcombe_interval(pairs: Paired, confidence: float = 0.95) -> Interval:
    """Confidence interval of ``pairs.difference``.

    Args:
        pairs: Paired outcomes, at least one case.
        confidence: In (0, 1).

    Returns:
        Lower and upper bound in [-1, 1].

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17, method 10.
    """
    total, yes_first, yes_second = pairs.total, pairs.both + pairs.first, pairs.both + pairs.second
    low_1, high_1 = wilson_interval(yes_first, total, confidence)
    low_2, high_2 = wilson_interval(yes_second, total, confidence)
    share_1, share_2 = yes_first / total, yes_second / total
    phi = _correlation(pairs)
    below = _joined(share_2 - low_2, high_1 - share_1, phi)
    above = _joined(high_2 - share_2, share_1 - low_1, phi)
    return pairs.difference - below, pairs.difference + above


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(pairs: Paired) -> float:
    """The corrected phi coefficient of method 10."""
    margins = (
        (pairs.both + pairs.first)
        * (pairs.second + pairs.neither)
        * (pairs.both + pairs.second)
        * (pairs.first + pairs.neither)
    )
    if margins == 0:
        return 0.0
    cross = pairs.both * pairs.neither - pairs.first * pairs.second
    if cross > 0:
        cross = max(cross - pairs.total / 2, 0)
    return cross / math.sqrt(margins)


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p-value that changes in both directions are equally likely.

    For yes-or-no outcomes this is the exact McNemar test.

    Args:
        better: Cases that changed in one direction, at least 0.
        worse: Cases that changed in the other.

    Source: McNemar 1947; its exact form is the binomial test with 1/2 on the changed cases.
    """
    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number; the order stays.

    Args:
        p_values: One p-value a comparison, in [0, 1].

    Returns:
        Values that may be compared with the level of a single test.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    made = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        made[place] = largest
    return made


def bootstrap_interval(
    hits: Sequence[float], weights: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Percentile interval of ``sum(hits) / sum(weights)`` when cases are drawn again.

    Counts that belong to one picture stay together, and so do paired differences.

    Args:
        hits: One number a case; may be negative (a difference).
        weights: One positive number a case.
        confidence: In (0, 1).

    Returns:
        Lower and upper bound; the same numbers give the same bounds.

    Source: Efron 1979; 4000 resamples with a fixed seed.
    """
    top, bottom = np.asarray(hits, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if top.shape != bottom.shape or top.size == 0 or not (bottom > 0).all():
        raise ValueError("give one number and one positive weight a case, at least one case")
    source = np.random.default_rng(RESAMPLING_SEED)
    drawn = source.integers(0, top.size, (RESAMPLES, top.size))
    shares = top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_p(differences: Sequence[float]) -> float:
    """Two-sided p of a difference from how often it has the other sign when cases are drawn again.

    Args:
        differences: The difference in each resample.

    Returns:
        Twice the share of resamples on the rarer side of 0, at most 1 and never 0.

    Source: Davison and Hinkley 1997, section 4.4: one is added to count and resamples.
    """
    values = np.asarray(differences, dtype=np.float64)
    rarer = min(int((values <= 0).sum()), int((values >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (values.size + 1))


def median(values: Sequence[float]) -> float:
    """Middle value."""
    return float(np.median(np.asarray(values)))


def quartiles(values: Sequence[float]) -> Interval:
    """First and third quartile."""
    low, high = np.quantile(np.asarray(values), [0.25, 0.75])
    return float(low), float(high)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1")
    return float(stats.norm.ppf(0.5 + confidence / 2))
