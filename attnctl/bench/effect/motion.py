"""Suite ``motion``: clips made from words, every frame verified, and how their objects move."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.effect.clip_records import (
    ClipMaker,
    Record,
    compare,
    compare_seen,
    mean_or_none,
    records_of,
    save_clip,
    save_sheet,
    share_right,
)
from attnctl.bench.effect.lines import EffectLine, Outcome, Subject, of_answers, of_numbers
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import MOTION, setting_text
from attnctl.pipelines.text_to_video import draw_videos  # pyright: ignore[reportMissingImports]
from attnctl.recipes import Recipe
from attnctl.shapes.captions import Prompt, prompts
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.shapes.evaluate_clips import judge

SUITE = "motion"
RIGHT, WHOLE = "frames all right", "clips right in every frame"
SPEED, SHAKE = "speed, px a frame", "shake, px"
OBJECTS = (1, 2)
"""Numbers of objects a prompt: half of the clips each."""

SHOWN_PROMPTS = 2


_AS_PICTURES = "as for pictures of shapes; not tuned for clips"
ENTRIES = (
    ClipMaker("broadway", {}, "the authors' values for AnimateDiff", (SPEED,)),
    ClipMaker("vico", {}, "the authors' values", (RIGHT,)),
    ClipMaker("vstar", {"sigmas": "64D1"}, "the authors' preset for 16 frames", (SPEED,)),
    ClipMaker("pag", {"scale": 1.0, "where": "down:self"}, _AS_PICTURES, (RIGHT,)),
    ClipMaker("seg", {"scale": 1.0, "where": "down:self", "sigma": 2.0}, _AS_PICTURES, (RIGHT,)),
    ClipMaker("cfg-zero-star", {"zero_steps": 0}, _AS_PICTURES, (RIGHT,)),
    ClipMaker("apg", {"eta": 0.0, "norm_threshold": 15.0}, _AS_PICTURES, (RIGHT,)),
)
TECHNIQUES = tuple(entry.technique for entry in ENTRIES)


def measure_motion(work: Work) -> Part | None:
    """Make clips with and without each technique, from the same prompts and seeds.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = [entry for entry in ENTRIES if work.wants(entry.technique)]
    if not wanted or work.model != MOTION:
        return None
    part = start_part(work, SUITE)
    usual, asked = SamplingSettings(), work.settings
    run = part.run["motion"] = {
        "steps": asked.steps_or(usual.steps), "guidance": usual.guidance, "frames": asked.frames,
        "conditions": [entry.condition.to_plain() for entry in wanted],
    }  # fmt: skip

    def make(condition: Condition, name: str, case: Prompt) -> Record:
        return _make(work, condition, name, case, run)

    records = compare(work, part, wanted, PLAIN, _asked(work), make, _lines)
    part.sheets["first"] = save_sheet(work, records, SHOWN_PROMPTS)
    return part


def _asked(work: Work) -> list[Prompt]:
    """Prompts, numbers of objects in turn."""
    count = work.settings.clips
    listed = [prompts(work.settings.split, number, -(-count // 2)) for number in OBJECTS]
    return [prompt for pair in zip(*listed, strict=True) for prompt in pair][:count]


def _make(work: Work, condition: Condition, name: str, prompt: Prompt, run: Record) -> Record:
    recipe = Recipe.from_dict(
        {
            "model": work.model,
            "prompt": prompt.text,
            "seed": prompt.seed,
            "steps": run["steps"],
            "guidance": run["guidance"],
            "techniques": condition.entries([prompt]),
        },
        name="",
    )
    started = time.perf_counter()
    [made] = draw_videos(work.pipe, recipe, frames=run["frames"])
    seconds = time.perf_counter() - started
    saved = save_clip(work.folder, name, condition, made.video.tensor(), made.record)
    found = judge(prompt, made.video.frames.astype(np.float32) / np.float32(255))
    return {
        "id": name,
        "condition": condition.name,
        "prompt": prompt.text,
        "seed": prompt.seed,
        "verdicts": [verdict.label() for verdict in found.frames],
        "right": [verdict.all_right for verdict in found.frames],
        "speed": mean_or_none(found.speeds()),
        "shake": mean_or_none(found.shakes()),
        **saved,
        "seconds": seconds,
    }


def _lines(entry: ClipMaker, records: Sequence[Record]) -> list[EffectLine]:
    """Lines of one technique, compared to plain clips."""
    setting = setting_text(entry.parameters)
    subject = Subject(SUITE, entry.technique, MOTION, setting, entry.source)
    plain, steered = (records_of(records, name) for name in (PLAIN, entry.technique))
    shares = [[share_right(r) for r in mine] for mine in (plain, steered)]
    whole = [[all(r["right"]) for r in mine] for mine in (plain, steered)]
    came: dict[str, Outcome | None] = {
        RIGHT: of_numbers(*shares, is_good=True),
        WHOLE: of_answers(*whole, is_good=True),
        SPEED: compare_seen(plain, steered, "speed", is_good=True),
        SHAKE: compare_seen(plain, steered, "shake", is_good=False),
    }
    return [
        subject.line(measure, PLAIN, outcome, claimed=measure in entry.claims)
        for measure, outcome in came.items()
        if outcome is not None
    ]
