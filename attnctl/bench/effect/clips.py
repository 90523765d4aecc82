"""Suite ``clips``: edited clips whose true motion is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnctl.bench.effect.lines import EffectLine, Outcome, Subject, of_numbers
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import UNET
from attnctl.bench.video.cases import CONDITIONS, WORDS, VideoCondition
from attnctl.bench.video.measure import VideoBench, VideoBenchSettings, measure
from attnctl.bench.video.text import save_pictures

SUITE = "clips"
WARPING, SUCCESS, KEPT = "warping error", "frames that show the edit", "PSNR elsewhere, dB"
RIGHT = "frames all right"
STRENGTH = 0.6
"""Share of the run that is drawn anew, where the clip alone says how things move: with 0.7 some
frames have objects in other places than the clip."""

_EDIT_SCORES = ((WARPING, "warping_error", False), (SUCCESS, "success", True),
                (KEPT, "preservation", True))  # fmt: skip
_DRAWN_SCORES = ((WARPING, "warping_error", False), (RIGHT, "success", True))

TOKEN_FLOW = VideoCondition("TokenFlow", (WORDS, {"token-flow": {}}), inject=0.8)
REAL_CRAFT = VideoCondition("RealCraft", ({"real-craft": {}},), inject=0.8)
DRAWN = VideoCondition("drawn frame by frame", strength=STRENGTH)
FLO_AT = VideoCondition("FloAt", ({"flo-at": {}},), flow="dis", strength=STRENGTH)
ALL_CONDITIONS = (*CONDITIONS, TOKEN_FLOW, REAL_CRAFT, DRAWN, FLO_AT)

COLOURS, SHAPES, DRAWING = "", "shapes", "drawn"
"""Runs with journals and sheets of their own: clips edited to another colour, to another shape, and
drawn anew, as they are, from their noised frames. The first one lies in the suite's own folder."""
_EDITS = {COLOURS: "colour", SHAPES: "shape", DRAWING: "none"}


@dataclass(frozen=True, slots=True)
class ClipEntry:
    """One technique for clips.

    Attributes:
        technique: Its name.
        condition: Name of the condition that has it.
        against: Name of the condition without it.
        claims: What it claims to move.
        run: Which of the runs it belongs to.
    """

    technique: str
    condition: str
    against: str
    claims: tuple[str, ...] = (WARPING,)
    run: str = COLOURS


_PER_FRAME, _NO_WORDS = "per-frame", "per-frame, no word-swap"
ENTRIES = (
    ClipEntry("cross-frame-attention", "cross-frame attention", _PER_FRAME),
    ClipEntry("flatten", "FLATTEN", _PER_FRAME),
    ClipEntry("token-flow", TOKEN_FLOW.name, _PER_FRAME),
    ClipEntry("word-swap", _PER_FRAME, _NO_WORDS, (SUCCESS,)),
    ClipEntry("real-craft", REAL_CRAFT.name, _PER_FRAME, (SUCCESS,), SHAPES),
    ClipEntry("real-craft", REAL_CRAFT.name, _NO_WORDS, (KEPT,), SHAPES),
    ClipEntry("flo-at", FLO_AT.name, DRAWN.name, (WARPING,), DRAWING),
)
TECHNIQUES = tuple(dict.fromkeys(entry.technique for entry in ENTRIES))


def measure_clips(work: Work) -> Part | None:
    """Edit clips and compare each technique with the same edit without it.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = [entry for entry in ENTRIES if work.wants(entry.technique)]
    if not wanted or work.model != UNET:
        return None
    part = start_part(work, SUITE)
    for run in dict.fromkeys(entry.run for entry in wanted):
        _measure_run(work, part, run, [entry for entry in wanted if entry.run == run])
    return part


def _measure_run(work: Work, part: Part, run: str, wanted: Sequence[ClipEntry]) -> None:
    """Add lines, costs and the sheet of one run."""
    asked, usual = work.settings, VideoBenchSettings()
    settings = VideoBenchSettings(
        *(work.model, asked.clips, asked.frames, asked.split),
        asked.steps_or(usual.steps),
        edit=_EDITS[run],
    )
    names = {name for entry in wanted for name in (entry.against, entry.condition)}
    conditions = [c for c in ALL_CONDITIONS if c.name in names]
    folder = work.folder / run if run else work.folder
    done = measure(work.pipe, settings, conditions, folder, resume=work.resume, say=work.say)
    part.run[f"clips, {run}" if run else "clips"] = {
        key: done.record[key] for key in ("settings", "conditions")
    }
    for entry in wanted:
        condition = next(c for c in conditions if c.name == entry.condition)
        part.lines += _lines(entry, condition, done)
        part.costs.append(_cost(entry, done))
    sheet = f"{run}, first" if run else "first"
    part.sheets[sheet] = save_pictures(done, f"video-{work.model}")["sheet"]


def _lines(entry: ClipEntry, condition: VideoCondition, done: VideoBench) -> list[EffectLine]:
    listed = [f"{name}{given or ''}" for one in condition.techniques for name, given in one.items()]
    drawn = [f"strength {condition.strength:g}"] if condition.strength else []
    setting = f"{entry.condition}: {', '.join([*listed, *drawn])}"
    subject = Subject(SUITE, entry.technique, UNET, setting, "docs/video.md")
    return [
        subject.line(
            measure,
            entry.against,
            _came(entry, done, key, is_good),
            claimed=measure in entry.claims,
        )
        for measure, key, is_good in (_DRAWN_SCORES if entry.run == DRAWING else _EDIT_SCORES)
    ]


def _came(entry: ClipEntry, done: VideoBench, key: str, is_good: bool) -> Outcome:
    before, after = (
        [float(e[key]) for e in _of(done, name)] for name in (entry.against, entry.condition)
    )
    return of_numbers(before, after, is_good=is_good)


def _cost(entry: ClipEntry, done: VideoBench) -> dict[str, Any]:
    before, after = (
        sum(float(e["seconds"]) for e in _of(done, name)) / len(_of(done, name))
        for name in (entry.against, entry.condition)
    )
    return {
        "condition": entry.condition, "setting": "", "against": entry.against,
        "seconds": after, "time_ratio": after / before,
    }  # fmt: skip


def _of(done: VideoBench, condition: str) -> Sequence[Mapping[str, Any]]:
    mine = (e for e in done.entries if e["condition"] == condition)
    return sorted(mine, key=lambda e: str(e["id"]))
