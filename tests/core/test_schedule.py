"""One schedule for every technique: start included, stop excluded, units kept apart."""

from __future__ import annotations

import math

import pytest

from attnctl import Schedule, after, between, every, ramp, steps, until
from attnctl.errors import ScheduleError

ALL = tuple(range(10))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule.always(), ALL),
        (until(1), (0,)),
        (until(1.0), ALL),
        (until(0), ()),
        (until(0.0), ()),
        (until(25), ALL),
        (after(7), (7, 8, 9)),
        (after(0.75), (8, 9)),
        (after(12), ()),
        (between(2, 5), (2, 3, 4)),
        (between(0.2, 0.5), (2, 3, 4)),
        (between(3, 3), ()),
        (between(0, 0.3), (0, 1, 2)),
        (steps(3, 7, 11), (3, 7)),
        (steps(5, 5, 1), (1, 5)),
        (every(4), (0, 4, 8)),
        (every(4, during=after(3)), (4, 8)),
        (every(2, during="50%-"), (6, 8)),
    ],
    ids=str,
)
def test_a_schedule_acts_from_its_start_until_before_its_stop(
    schedule: Schedule, expected: tuple[int, ...]
) -> None:
    assert schedule.active_steps(10) == expected


@pytest.mark.parametrize("total", [1, 2, 3, 7, 50, 999, 1000])
@pytest.mark.parametrize("cut", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_two_windows_that_meet_share_no_step_and_leave_none_out(total: int, cut: float) -> None:
    first, second = until(cut).active_steps(total), after(cut).active_steps(total)

    assert first + second == tuple(range(total))
    assert all(index / total < cut + 1e-9 for index in first)


@pytest.mark.parametrize("total", [1, 2, 50])
def test_a_fraction_and_its_step_index_are_the_same_window(total: int) -> None:
    for index in range(total + 1):
        assert until(index / total).active_steps(total) == until(index).active_steps(total)


@pytest.mark.parametrize(
    "text",
    ["0-50%", "20-60%", "30%-", "0-25", "3-", "3,7,11", "every 5", "always", "0-3+7-9"],
)
def test_a_schedule_reads_what_it_writes(text: str) -> None:
    schedule = Schedule.parse(text)

    assert str(schedule) == text
    assert Schedule.parse(str(schedule)) == schedule
    assert repr(schedule) == f"Schedule({text!r})"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("-50%", until(0.5)),
        ("0-0.5", until(0.5)),
        ("0.25-0.5", between(0.25, 0.5)),
        ("-7", until(7)),
        (" 3 , 7 ", steps(3, 7)),
        ("", Schedule.always()),
        ("0-50% ramp 1..0 cosine", ramp(1.0, 0.0, shape="cosine", during=until(0.5))),
        ("ramp 0..2", ramp(0.0, 2.0)),
        ("0-50% every 3", every(3, during=until(0.5))),
    ],
)
def test_short_forms_mean_the_same(text: str, same: Schedule) -> None:
    assert [Schedule.parse(text).strength(i, 20) for i in range(20)] == [
        same.strength(i, 20) for i in range(20)
    ]


@pytest.mark.parametrize("total", [1, 2, 3, 50])
@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_ramp_goes_from_its_first_to_its_last_value(total: int, shape: str) -> None:
    schedule = Schedule.parse(f"ramp 1..0.25 {shape}")
    strengths = [schedule.strength(index, total) for index in range(total)]

    assert strengths[0] == 1.0
    assert all(math.isfinite(s) and 0.25 <= s <= 1 for s in strengths)
    assert strengths == sorted(strengths, reverse=True)
    if total > 1:
        assert strengths[-1] == 0.25


def test_a_ramp_runs_over_its_own_window() -> None:
    schedule = ramp(1.0, 3.0, during=between(4, 7))

    assert [schedule.strength(i, 10) for i in ALL] == [0, 0, 0, 0, 1, 2, 3, 0, 0, 0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: until(-1),
        lambda: until(-0.5),
        lambda: until(1.5),
        lambda: until(float("nan")),
        lambda: until(float("inf")),
        lambda: until(True),
        lambda: until("3"),  # pyright: ignore[reportArgumentType]
        lambda: between(5, 2),
        lambda: between(0.5, 0.2),
        lambda: between(3, 0.5),
        lambda: between(0.5, 3),
        lambda: steps(-1),
        lambda: steps(True),
        lambda: steps(0.5),  # pyright: ignore[reportArgumentType]
        lambda: every(0),
        lambda: every(True),
        lambda: ramp(float("nan"), 1.0),
        lambda: ramp(0.0, float("inf")),
        lambda: ramp(0.0, 1.0, shape="square"),  # pyright: ignore[reportArgumentType]
        lambda: Schedule.parse("sometimes"),
        lambda: Schedule.parse("50%-20%"),
        lambda: Schedule.parse("0-150%"),
        lambda: Schedule.parse("ramp a..b"),
        lambda: Schedule.parse("-"),
        lambda: Schedule.parse(None),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_malformed_schedule_is_refused_when_it_is_made(make: object) -> None:
    with pytest.raises(ScheduleError, match=r".{20}"):
        make()  # pyright: ignore[reportCallIssue]


def test_fractions_of_a_run_of_unknown_length_are_refused() -> None:
    with pytest.raises(ScheduleError, match=r"fractions of a run.*use step indices"):
        until(0.5).strength(0, None)
    with pytest.raises(ScheduleError, match="attach to the pipeline"):
        ramp(0.0, 1.0).strength(0, None)


@pytest.mark.parametrize("schedule", [Schedule.always(), every(2), after(0), steps(0, 2)], ids=str)
def test_what_needs_no_length_works_without_one(schedule: Schedule) -> None:
    assert [schedule.strength(index, None) for index in (0, 2)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (until(5), after(4), True),
        (until(5), after(5), False),
        (until(0.5), between(0.4, 0.6), True),
        (until(0.5), after(0.5), False),
        (until(5), until(0.5), False),
        (Schedule.always(), until(1), True),
        (Schedule.always(), until(0.5), True),
        (steps(3), every(3), True),
        (steps(3), every(2), False),
        (every(5), until(3), True),
        (Schedule.always(), until(0), False),
    ],
    ids=str,
)
def test_windows_of_one_unit_overlap_for_certain_or_not(
    one: Schedule, other: Schedule, expected: bool
) -> None:
    assert one.surely_overlaps(other) is expected
    assert other.surely_overlaps(one) is expected
