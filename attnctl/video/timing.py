"""From frames at any times to a constant rate."""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

STANDARD_RATES = tuple(
    Fraction(n, d)
    for n, d in (
        (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1),
        (60000, 1001), (60, 1), (120, 1), (15, 1), (12, 1), (10, 1), (8, 1),
    )
)  # fmt: skip


def is_constant(times: Sequence[Fraction], rate: Fraction, tick: Fraction) -> bool:
    """Whether frames lie at multiples of ``1 / rate``, but for rounding to ticks.

    Args:
        times: Start of each frame in seconds, increasing.
        rate: Frames a second.
        tick: Unit in which the file counts time, in seconds.
    """
    slack = max(2 * tick, Fraction(1, 10) / rate)
    return all(abs(time - times[0] - i / rate) <= slack for i, time in enumerate(times))


def nominal_rate(times: Sequence[Fraction], last: Fraction) -> Fraction:
    """A constant rate for frames at these times: their mean one, snapped to a usual one.

    Args:
        times: Start of each frame in seconds, increasing.
        last: Duration of the last frame in seconds.
    """
    length = times[-1] - times[0] + last
    mean = len(times) / length if length > 0 else Fraction(25)
    near = min(STANDARD_RATES, key=lambda rate: abs(rate - mean))
    return near if abs(near - mean) <= mean / 200 else mean.limit_denominator(1001)


def resample_times(times: Sequence[Fraction], last: Fraction, rate: Fraction) -> list[int]:
    """Choose the frame that is on screen at each tick of a constant rate.

    Args:
        times: Start of each frame in seconds, increasing.
        last: Duration of the last frame in seconds.
        rate: Frames a second of the result.

    Returns:
        Index of a frame for each tick, never decreasing; at least one.
    """
    length = times[-1] - times[0] + last
    count = max(1, round(length * rate))
    # A frame that starts within a tenth of a tick after it counts as being there.
    slack = Fraction(1, 10) / rate
    return [max(0, bisect_right(times, times[0] + i / rate + slack) - 1) for i in range(count)]
