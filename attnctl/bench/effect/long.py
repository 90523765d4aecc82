"""Suite ``long``: clips that go from one prompt to the next, and how smooth the hand-over is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnctl.bench.conditions import Condition
from attnctl.bench.effect.clip_paths import largest_step
from attnctl.bench.effect.clip_records import (
    ClipMaker,
    Record,
    compare,
    compare_seen,
    records_of,
    save_clip,
    save_sheet,
    share_right,
)
from attnctl.bench.effect.lines import EffectLine, Outcome, Subject, of_numbers
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import MOTION, Parameters, setting_text
from attnctl.pipelines.long_video import make_long_video  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.tiling import LongPlan, Tiling  # pyright: ignore[reportMissingImports]
from attnctl.registry import build
from attnctl.shapes.captions import Caption, Prompt, prompts
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.shapes.verifier import verify

SUITE = "long"
JUMP, KEPT = "largest step of the hand-over, 0..255", "frames that keep the first object"
RIGHT = "frames right for their prompt"
NOTHING_SHARED = "the same tiles, nothing shared"
HAND_OVER = "hand-over"
TRANSITIONS = 1
SHOWN_CASES = 2


_CLAIMS = (JUMP, KEPT)
_MORE: Parameters = {"last_layers": 0.5, "steps": "0-60%"}
ENTRIES = (
    ClipMaker("ditctrl", {}, "the authors' share of layers and steps", _CLAIMS),
    ClipMaker("ditctrl", _MORE, "docs/video.md", _CLAIMS, "ditctrl, more"),
)
TECHNIQUES = tuple(dict.fromkeys(entry.technique for entry in ENTRIES))


@dataclass(frozen=True, slots=True)
class LongCase:
    """Two prompts of one clip.

    Attributes:
        prompts: Both captions.
        seed: Of the noise.
        keeps: Whether the second prompt names the first one's object, too.
    """

    prompts: tuple[Caption, Caption]
    seed: int
    keeps: bool


def make_cases(split: str, count: int) -> list[LongCase]:
    """Make pairs of prompts, in turn with another object and with a second one.

    Args:
        split: Name of the list.
        count: Cases; a shorter list is the beginning of a longer one.
    """
    return [_case(prompt, bool(place % 2)) for place, prompt in enumerate(prompts(split, 2, count))]


def _case(prompt: Prompt, keeps: bool) -> LongCase:
    first, second = prompt.objects
    then = (first, second) if keeps else (second,)
    return LongCase((Caption((first,)), Caption(then)), prompt.seed, keeps)


def measure_long(work: Work) -> Part | None:
    """Make long clips with and without what their tiles share, from the same noise.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = [entry for entry in ENTRIES if work.wants(entry.technique)]
    if not wanted or work.model != MOTION:
        return None
    part = start_part(work, SUITE)
    usual, asked = SamplingSettings(), work.settings
    run = part.run["long"] = {
        "steps": asked.steps_or(usual.steps), "guidance": usual.guidance,
        "frames of a tile": asked.frames, "overlap": asked.frames // 2, "transitions": TRANSITIONS,
        "conditions": [entry.condition.to_plain() for entry in wanted],
    }  # fmt: skip
    cases = make_cases(asked.split, asked.clips)

    def make(condition: Condition, name: str, case: LongCase) -> Record:
        return _make(work, condition, name, case, run)

    records = compare(work, part, wanted, NOTHING_SHARED, cases, make, _lines)
    part.sheets["first"] = save_sheet(work, records, SHOWN_CASES)
    return part


def _make(work: Work, condition: Condition, name: str, case: LongCase, run: Record) -> Record:
    started = time.perf_counter()
    long = make_long_video(
        work.pipe,
        [str(caption) for caption in case.prompts],
        tiling=Tiling(run["overlap"], TRANSITIONS),
        frames=run["frames of a tile"],
        techniques=[build(name, parameters) for name, parameters in condition.techniques],
        generator=torch.Generator().manual_seed(case.seed),
        num_inference_steps=run["steps"],
        guidance_scale=run["guidance"],
    )
    seconds = time.perf_counter() - started
    frames = np.rint(np.asarray(long.frames, np.float32).clip(0, 1) * 255)
    start, stop = hand_over(long.plan)
    asked = [0] * start + [None] * (stop - start) + [1] * (len(frames) - stop)
    found = [verify(f, case.prompts[a or 0]) for f, a in zip(frames / 255, asked, strict=True)]
    kept = [one.box_of(case.prompts[0].objects[0]) is not None for one in found]
    tensor = torch.from_numpy(frames / np.float32(255)).permute(0, 3, 1, 2)
    return {
        "id": name,
        "condition": condition.name,
        "prompt": ", then ".join(map(str, case.prompts)),
        "seed": case.seed,
        "verdicts": [
            HAND_OVER if at is None else one.label() for at, one in zip(asked, found, strict=True)
        ],
        "right": [
            None if at is None else one.all_right for at, one in zip(asked, found, strict=True)
        ],
        "kept": sum(kept) / len(kept) if case.keeps else None,
        "jump": step_of_hand_over(frames, start, stop),
        **save_clip(work.folder, name, condition, tensor, None),
        "seconds": seconds,
    }


def hand_over(plan: LongPlan) -> tuple[int, int]:
    """First frame that the first tile shares, and the first that the last tile has alone.

    Args:
        plan: Of two prompts, for a model that does not compress time.
    """
    return plan.starts[1], plan.starts[-2] + plan.length


def step_of_hand_over(frames: NDArray[Any], start: int, stop: int) -> float:
    """Largest mean absolute difference of neighbours, the frames beside the hand-over included.

    Args:
        frames: ``(F, H, W, 3)`` in [0, 255].
        start: First frame of the hand-over.
        stop: First frame behind it.
    """
    return largest_step(frames[max(0, start - 1) : stop + 1])


def _lines(entry: ClipMaker, records: Sequence[Record]) -> list[EffectLine]:
    """Lines of one way, compared to clips whose tiles share nothing."""
    plain, shared = (records_of(records, name) for name in (NOTHING_SHARED, entry.condition.name))
    jumps = [[r["jump"] for r in mine] for mine in (plain, shared)]
    shares = [[share_right(r) for r in mine] for mine in (plain, shared)]
    came: dict[str, Outcome | None] = {
        JUMP: of_numbers(*jumps, is_good=False),
        KEPT: compare_seen(plain, shared, "kept", is_good=True),
        RIGHT: of_numbers(*shares, is_good=True),
    }
    notes = {KEPT: "clips whose second prompt names it, too", RIGHT: "without the hand-over"}
    subject = Subject(SUITE, entry.technique, MOTION, setting_text(entry.parameters), entry.source)
    return [
        subject.line(
            *(measure, NOTHING_SHARED, outcome),
            claimed=measure in entry.claims,
            note=notes.get(measure, ""),
        )
        for measure, outcome in came.items()
        if outcome is not None
    ]
