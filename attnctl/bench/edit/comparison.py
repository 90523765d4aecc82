"""From scores of single edits to a table: shares, means, and success at equal preservation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnctl.bench.edit.methods import NOTHING, REGENERATE, SDEDIT
from attnctl.bench.statistics import (
    RESAMPLES,
    RESAMPLING_SEED,
    Interval,
    bootstrap_interval,
    bootstrap_p,
    wilson_interval,
)

Entry = Mapping[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """One method.

    Attributes:
        method: Its name.
        count: Edits.
        reached: Share of edits whose target is seen, with its 95 percent interval.
        kept: Share whose untouched objects are all there.
        success: Share with both.
        psnr: Mean PSNR outside the edited region, decibels.
        ssim: Mean SSIM there.
        gained_psnr: Decibels more than plain re-generation, paired.
        sdedit: Success of SDEdit at the same mean PSNR, between the strengths that were made.
        gained_success: Success minus that, paired.
        gained_p: Two-sided p of that gain, from the same resamples as its interval.
        verdict: Whether it beats SDEdit at equal preservation: yes, no, or not shown.
        by_kind: Success by kind of edit.
    """

    method: str
    count: int
    reached: tuple[float, Interval]
    kept: tuple[float, Interval]
    success: tuple[float, Interval]
    psnr: tuple[float, Interval]
    ssim: tuple[float, Interval]
    gained_psnr: tuple[float, Interval] | None
    sdedit: float | None
    gained_success: tuple[float, Interval] | None
    gained_p: float | None
    verdict: str
    by_kind: dict[str, float]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return asdict(self)


def compare(entries: Sequence[Entry], names: Sequence[str]) -> list[Line]:
    """Compare methods that edited the same cases.

    Args:
        entries: One record an edit.
        names: The methods, baselines among them.
    """
    by_name = {
        name: sorted((e for e in entries if e["condition"] == name), key=lambda e: e["id"])
        for name in names
    }
    curve = [name for name in names if name == NOTHING or name.startswith(SDEDIT)]
    return [_line(name, by_name, curve) for name in names]


def success_at(psnr: float, points_psnr: Floats, points_success: Floats) -> float:
    """Success of SDEdit at a mean PSNR, linear between its strengths, flat beyond them."""
    order = np.argsort(points_psnr)
    return float(np.interp(psnr, points_psnr[order], points_success[order]))


def _line(name: str, by_name: Mapping[str, Sequence[Entry]], curve: Sequence[str]) -> Line:
    mine = by_name[name]
    count = len(mine)
    success, psnr = _column(mine, "success"), _column(mine, "psnr")
    is_baseline = name in curve
    sdedit, gained, gained_p, verdict = None, None, None, ""
    if not is_baseline and len(curve) > 1:
        sdedit, gained, gained_p = _at_equal_preservation(
            success, psnr, [by_name[n] for n in curve]
        )
        low, high = gained[1]
        verdict = "yes" if low > 0 else "no" if high < 0 else "not shown"
    gained_psnr = None
    if name != REGENERATE and REGENERATE in by_name:
        gained_psnr = _mean(psnr - _column(by_name[REGENERATE], "psnr"))
    kinds = dict.fromkeys(str(entry["kind"]) for entry in mine)
    return Line(
        method=name,
        count=count,
        reached=_share(mine, "reached"),
        kept=_share(mine, "kept"),
        success=_share(mine, "success"),
        psnr=_mean(psnr),
        ssim=_mean(_column(mine, "ssim")),
        gained_psnr=gained_psnr,
        sdedit=sdedit,
        gained_success=gained,
        gained_p=gained_p,
        verdict=verdict,
        by_kind={
            kind: float(np.mean([e["success"] for e in mine if e["kind"] == kind]))
            for kind in kinds
        },
    )


def _at_equal_preservation(
    success: Floats, psnr: Floats, curve: Sequence[Sequence[Entry]]
) -> tuple[float, tuple[float, Interval], float]:
    """SDEdit's success at the method's PSNR; the method's gain over it, its interval and its p."""
    of_psnr = np.stack([_column(one, "psnr") for one in curve])
    of_success = np.stack([_column(one, "success") for one in curve])
    there = success_at(psnr.mean(), of_psnr.mean(1), of_success.mean(1))
    source = np.random.default_rng(RESAMPLING_SEED)
    drawn = source.integers(0, len(success), (RESAMPLES, len(success)))
    gains = [
        success[cases].mean()
        - success_at(psnr[cases].mean(), of_psnr[:, cases].mean(1), of_success[:, cases].mean(1))
        for cases in drawn
    ]
    low, high = np.quantile(gains, [0.025, 0.975])
    return there, (float(success.mean() - there), (float(low), float(high))), bootstrap_p(gains)


def _column(entries: Sequence[Entry], name: str) -> Floats:
    return np.array([float(entry[name]) for entry in entries])


def _share(entries: Sequence[Entry], name: str) -> tuple[float, Interval]:
    hits = sum(bool(entry[name]) for entry in entries)
    return hits / len(entries), wilson_interval(hits, len(entries))


def _mean(values: Floats) -> tuple[float, Interval]:
    listed = [float(v) for v in values]
    return float(values.mean()), bootstrap_interval(listed, [1.0] * len(listed))
