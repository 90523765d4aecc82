"""Counting verdicts: which measure, for which prompts, better or worse than plain."""

import pytest

from attnctl.bench.statistics import Paired, newcombe_interval, wilson_interval
from attnctl.bench.tally import HEAD, table, tally


def entry(number: int, condition: str, missing: int = 0, wanted: int = 2, extra: int = 0):
    return {
        "id": f"{wanted}-{number:05d}",
        "condition": condition,
        "wanted": ["red circle"] * wanted,
        "missing": ["red circle"] * missing,
        "all_right": missing == 0,
        "exact": missing == 0 and extra == 0,
        "neglect": missing > extra,
        "absence": missing > 0,
    }


PLAIN = [entry(i, "plain", missing=int(i < 6)) for i in range(10)]
STEERED = [entry(i, "steered", missing=int(i in (0, 1, 9)), extra=int(i == 2)) for i in range(10)]


def line_of(lines, measure, condition, objects=2):
    [found] = [
        line
        for line in lines
        if (line.measure, line.condition, line.objects) == (measure, condition, objects)
    ]
    return found


def test_success_is_counted_with_interval_difference_and_p_value():
    line = line_of(tally([*PLAIN, *STEERED], ["plain", "steered"]), "all right", "steered")
    assert (line.hits, line.count, line.share) == (7, 10, 0.7)
    assert line.interval == wilson_interval(7, 10)
    assert line.difference == pytest.approx(0.3)
    pairs = Paired(both=3, first=1, second=4, neither=2)
    assert line.difference_interval == pytest.approx(newcombe_interval(pairs))
    assert (line.better, line.worse, line.p_value) == (4, 1, pytest.approx(0.375))


def test_fewer_missing_objects_are_better():
    lines = tally([*PLAIN, *STEERED], ["plain", "steered"])
    for measure, count in (
        ("too few objects", 10),
        ("an object absent", 10),
        ("missing objects", 20),
    ):
        line = line_of(lines, measure, "steered")
        assert (line.hits, line.count, line.better, line.worse) == (3, count, 4, 1)
        assert line.difference == pytest.approx(-3 / count)


def test_an_extra_object_counts_against_exact_alone():
    line = line_of(tally([*PLAIN, *STEERED], ["plain", "steered"]), "exact", "steered")
    assert line.hits == 6


def test_plain_has_no_difference():
    line = line_of(tally(PLAIN, ["plain"]), "exact", "plain")
    assert line.difference is None
    assert line.p_value is None


def test_a_condition_that_changes_nothing_differs_by_nothing():
    same = [{**e, "condition": "same"} for e in PLAIN]
    for line in tally([*PLAIN, *same], ["plain", "same"]):
        if line.condition == "same":
            assert line.difference == 0.0
            assert (line.better, line.worse, line.p_value) == (0, 0, 1.0)


def test_prompts_with_more_objects_are_counted_apart_and_together():
    three = [entry(i, "plain", missing=2, wanted=3) for i in range(5)]
    lines = tally([*PLAIN, *three], ["plain"])
    assert [line.count for line in lines if line.measure == "missing objects"] == [20, 15, 35]
    assert line_of(lines, "missing objects", "plain", "all").hits == 16
    assert {line.objects for line in lines} == {2, 3, "all"}


def test_every_row_of_the_table_has_all_columns():
    rows = table(tally([*PLAIN, *STEERED], ["plain", "steered"]))
    assert {len(row) for row in rows} == {len(HEAD)}
    assert rows[1][4:11] == ("70.0", "39.7 to 89.2", "+30.0", "-11.8 to +60.1", "4", "1", "0.38")
