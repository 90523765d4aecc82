"""Suite ``fast``: cheaper attention, which claims to draw what dense attention draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.effect.lines import EffectLine, Subject, of_answers, of_mean, of_numbers
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import ALL_RIGHT, UNET, Parameters, setting_text
from attnctl.bench.sparse.conditions import Way, mask_alone
from attnctl.bench.sparse.measure import Sparse, SparseSettings, measure
from attnctl.bench.sparse.pictures import save_sheet
from attnctl.bench.sparse.speed import SpeedSettings
from attnctl.bench.steering import SteeringSettings
from attnctl.shapes.verifier import verify
from attnctl.techniques.rettention import Rettention

SUITE = "fast"
NEARNESS = "PSNR to dense, dB"
SIZE_PX, STEPS, GUIDANCE = 128, 20, 5.0
"""As published in benchmarks/sparse-*.json: 64 pixels have too few tokens to leave any out."""

MOST_DB = 60.0
"""Decibels of pictures that are equal."""

RETTENTION: Parameters = {"sparsity": 0.9, "least_tokens": 1024, "refresh": 3, "steps": "50%-"}
SETTINGS: dict[str, Parameters] = {
    "token-merging": {"ratio": 0.5},
    "agent-attention": {"ratio": 0.4, "agent_ratio": 0.95},
    "token-downsampling": {"factor": 2},
    "re-ttention": RETTENTION,
    "sparse-attention": {"mask": "the one of re-ttention, at its sparse steps"},
}

SOURCE = "benchmarks/sparse-peers.json, sparse-rettention-late.json"

TECHNIQUES = tuple(SETTINGS)
MASK = "sparse-attention"
_KEEPS = "claims to lose nothing"


def measure_fast(work: Work) -> Part | None:
    """Draw with dense and with cheaper attention, compare pictures and verdicts, and time them.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    names = [name for name in TECHNIQUES if work.wants(name)]
    if not names or work.model != UNET:
        return None
    asked = work.settings
    steps = asked.steps_or(STEPS)
    drawing = SteeringSettings(
        work.model, asked.objects, asked.fast, asked.split, steps, GUIDANCE, 1
    )
    ways = _ways(names, steps)
    settings = SparseSettings(drawing, SIZE_PX, SpeedSettings(repeats=asked.repeats, steps=steps))
    done = measure(*(work.pipe, settings, ways, work.folder), resume=work.resume, say=work.say)
    part = start_part(work, SUITE)
    part.run["fast"] = {key: done.record[key] for key in ("drawing", "size_px", "ways")}
    for way in (way for way in ways if way.name in names):
        part.lines += _lines(way, done)
    part.costs += _costs(done)
    sheet = save_sheet(done, shown=6)
    part.sheets |= {} if sheet is None else {"first": sheet}
    return part


def _ways(names: Sequence[str], steps: int) -> list[Way]:
    """Dense, and each technique; Re-ttention stands beside its mask alone."""
    alone = mask_alone(Rettention(**RETTENTION), steps)
    given = {name: alone if name == MASK else SETTINGS[name] for name in TECHNIQUES}
    needed = [n for n in given if n in names or (n == MASK and "re-ttention" in names)]
    beside = {"re-ttention": MASK}
    return [
        Way(Condition(PLAIN)),
        *(Way(Condition(n, ((n, given[n]),)), beside.get(n, "")) for n in needed),
    ]


def _lines(way: Way, done: Sparse) -> list[EffectLine]:
    [(name, given)] = way.condition.techniques
    subject = Subject(SUITE, name, UNET, f"{setting_text(given)} ({SIZE_PX} pixels)", SOURCE)
    right = of_answers(_right(done, PLAIN), _right(done, name), is_good=True)
    made = [subject.line(ALL_RIGHT, PLAIN, right, claimed=True, note=_KEEPS)]
    if way.beside:
        near = of_numbers(_decibels(done, way.beside), _decibels(done, name), is_good=True)
        return [*made, subject.line(NEARNESS, f"{way.beside}, the mask alone", near, claimed=True)]
    near = of_mean(_decibels(done, name), is_good=True)
    return [*made, subject.line(NEARNESS, "", near, claimed=False, note="a mean; 60 is equal")]


def _right(done: Sparse, name: str) -> list[bool]:
    return [verify(done.picture(e), str(e["prompt"])).all_right for e in _of(done, name)]


def _decibels(done: Sparse, name: str) -> list[float]:
    return [MOST_DB if e["psnr"] is None else min(MOST_DB, e["psnr"]) for e in _of(done, name)]


def _of(done: Sparse, name: str) -> list[Mapping[str, Any]]:
    mine = (e for e in done.entries if e["condition"] == name)
    return sorted(mine, key=lambda e: str(e["id"]))


def _costs(done: Sparse) -> list[dict[str, Any]]:
    """Times of whole runs as shares of dense ones."""
    speed = done.record["speed"]
    if speed is None:
        return []
    return [
        {
            "condition": line["condition"],
            "setting": "",
            "against": PLAIN,
            "time_ratio": 1 / line["whole"]["median"],
            "cpu_ratio": 1 / line["whole_cpu"]["median"],
        }
        for line in speed["lines"]
        if line.get("whole") and line.get("whole_cpu")
    ]
