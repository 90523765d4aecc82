"""Intervals and tests against published values and against scipy."""

import numpy as np
import pytest
from scipy import stats

from attnctl.bench.statistics import (
    Paired,
    bootstrap_interval,
    bootstrap_p,
    newcombe_interval,
    sign_test,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(hits, count, low, high):
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (3, 3), (70, 120), (1, 400)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_wilson_interval_equals_scipy(hits, count, confidence):
    theirs = stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    assert wilson_interval(hits, count, confidence) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(
    ("pairs", "low", "high"),
    [
        # Altman and others 2000, "Statistics with confidence", table 6.2
        (Paired(both=14, first=0, second=5, neither=22), 0.011, 0.226),
        # Fagerland and others 2017, "Statistical analysis of contingency tables", chapter 8
        (Paired(both=1, first=7, second=1, neither=12), -0.507, -0.026),
    ],
)
def test_newcombe_interval_equals_published_values(pairs, low, high):
    assert newcombe_interval(pairs) == pytest.approx((low, high), abs=6e-4)


def test_newcombe_interval_holds_the_difference_and_turns_with_the_sign():
    pairs = Paired(both=200, first=40, second=60, neither=100)
    low, high = newcombe_interval(pairs)
    assert low < pairs.difference < high
    turned = newcombe_interval(Paired(both=200, first=60, second=40, neither=100))
    assert turned == pytest.approx((-high, -low))


def test_newcombe_interval_of_equal_outcomes_is_centred_on_nothing():
    low, high = newcombe_interval(Paired(both=300, first=0, second=0, neither=100))
    assert -0.01 < low <= 0 <= high < 0.01
    assert newcombe_interval(Paired(4, 0, 0, 0)) == pytest.approx((-0.4899, 0.4899), abs=1e-4)


def test_sign_test_is_the_exact_mcnemar_test():
    assert sign_test(10, 2) == pytest.approx(2 * sum([1, 12, 66]) / 2**12)
    assert sign_test(1, 7) == pytest.approx(0.0703125)
    assert sign_test(59, 6) == pytest.approx(stats.binomtest(6, 65, 0.5).pvalue)
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 0) == 1.0


def test_paired_counts_outcomes_in_order():
    pairs = Paired.count([True, True, False, False, False], [True, False, True, False, False])
    assert pairs == Paired(both=1, first=1, second=1, neither=2)
    assert Paired(0, 1, 3, 4).difference == pytest.approx(2 / 8)


def test_bootstrap_interval_is_near_the_normal_one_and_repeatable():
    hits = np.random.default_rng(1).random(400) < 0.3
    interval = bootstrap_interval(hits.astype(float), np.ones(400))
    share, spread = hits.mean(), 1.96 * hits.std() / 20
    assert interval == pytest.approx((share - spread, share + spread), abs=0.01)
    assert interval == bootstrap_interval(hits.astype(float), np.ones(400))


def test_bootstrap_interval_of_nothing_but_zeros_is_zero():
    assert bootstrap_interval([0, 0, 0], [2, 3, 3]) == (0.0, 0.0)


def test_bootstrap_p_is_near_that_of_a_t_test_and_never_zero():
    values = np.random.default_rng(2).normal(0.2, 1, 100)
    drawn = values[np.random.default_rng(3).integers(0, 100, (20000, 100))].mean(axis=1)
    assert bootstrap_p(drawn) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    assert bootstrap_p(-drawn) == bootstrap_p(drawn)
    assert bootstrap_p([1.0] * 99) == 0.02
    assert bootstrap_p([0.0] * 99) == 1.0


@pytest.mark.parametrize(("hits", "count"), [(1, 0), (5, 4), (-1, 4)])
def test_a_share_that_is_none_is_refused(hits, count):
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(hits, count)
