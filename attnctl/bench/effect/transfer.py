"""Suite ``transfer``: a new subject on the path of a given clip's subject, which is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.bench.conditions import PLAIN, Condition
from attnctl.bench.effect.clip_paths import (
    largest_step,
    missed_px,
    path_of_colour,
    path_of_object,
    steps_apart,
)
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
from attnctl.bench.effect.lines import EffectLine, Subject, of_numbers
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import MOTION, setting_text
from attnctl.bench.video.ways import RATE
from attnctl.editing.features import FeatureStore
from attnctl.inversion import encode, invert, sampler_of
from attnctl.inversion.hosts import Call, run_pipeline
from attnctl.registry import build
from attnctl.shapes.captions import ObjectKind, Prompt, prompts
from attnctl.shapes.clips import Clip, ClipSettings, draw_clip
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.shapes.evaluate_clips import judge
from attnctl.shapes.world import WorldSettings
from attnctl.technique import Technique
from attnctl.techniques.recorders import WordRecorder
from attnctl.video import Video

SUITE = "transfer"
DISTANCE, RIGHT = "distance to the given path, px", "frames all right"
SEEN, STEP = "the same where both are seen, px", "largest step between frames, 0..255"
SHOWN_CASES = 3
_ONE_OBJECT = WorldSettings(count_weights=(1.0, 0.0, 0.0))


ENTRIES = (
    ClipMaker("motion-flow", {"scale_factor": 60.0}, "docs/video.md; not tuned", (DISTANCE,)),
)
TECHNIQUES = tuple(entry.technique for entry in ENTRIES)


@dataclass(frozen=True)
class TransferCase:
    """A given clip of one object, and a prompt with another one.

    Attributes:
        clip: The given clip.
        prompt: What is drawn, with its seed.
    """

    clip: Clip
    prompt: Prompt

    @property
    def given(self) -> ObjectKind:
        """The object of the given clip."""
        return self.clip.caption.objects[0]

    @property
    def subject(self) -> ObjectKind:
        """The new object."""
        return self.prompt.objects[0]


def make_cases(split: str, count: int, frames: int) -> list[TransferCase]:
    """Draw given clips whose object has neither the colour nor the shape of the prompt's.

    Args:
        split: Name of the list.
        count: Cases; a shorter list is the beginning of a longer one.
        frames: Frames of a clip.
    """
    return [_case(prompt, frames) for prompt in prompts(split, 1, count)]


def _case(prompt: Prompt, frames: int) -> TransferCase:
    generator = torch.Generator().manual_seed(prompt.seed)
    while True:
        case = TransferCase(draw_clip(generator, ClipSettings(frames, _ONE_OBJECT)), prompt)
        given, subject = case.given, case.subject
        if given.colour != subject.colour and given.shape != subject.shape:
            return case


def measure_transfer(work: Work) -> Part | None:
    """Draw new subjects with and without the motion of given clips, from the same noise.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = [entry for entry in ENTRIES if work.wants(entry.technique)]
    if not wanted or work.model != MOTION:
        return None
    part = start_part(work, SUITE)
    usual, asked = SamplingSettings(), work.settings
    run = part.run["transfer"] = {
        "steps": asked.steps_or(usual.steps), "guidance": usual.guidance, "frames": asked.frames,
        "conditions": [entry.condition.to_plain() for entry in wanted],
    }  # fmt: skip
    cases = make_cases(asked.split, asked.clips, asked.frames)

    def make(condition: Condition, name: str, case: TransferCase) -> Record:
        return _make(work, condition, name, case, run)

    records = compare(work, part, wanted, PLAIN, cases, make, _lines)
    given = [(f"given: {case.clip.caption}", case.clip.frames) for case in cases]
    part.sheets["first"] = save_sheet(work, records, SHOWN_CASES, given)
    return part


def _make(work: Work, condition: Condition, name: str, case: TransferCase, run: Record) -> Record:
    started = time.perf_counter()
    frames = _draw(work.pipe, condition, case, run)
    seconds = time.perf_counter() - started
    found = judge(case.prompt, frames)
    apart = steps_apart(
        path_of_colour(frames, case.subject.colour), path_of_object(case.clip.objects, 0)
    )
    seen = [px for px in apart if px is not None]
    lost = missed_px(frames.shape[1:3])
    return {
        "id": name,
        "condition": condition.name,
        "prompt": case.prompt.text,
        "seed": case.prompt.seed,
        "given": str(case.clip.caption),
        "verdicts": [verdict.label() for verdict in found.frames],
        "right": [verdict.all_right for verdict in found.frames],
        "distance": float(np.mean([lost if px is None else px for px in apart])),
        "apart": apart,
        "lost": len(apart) - len(seen),
        "step": largest_step(frames * 255),
        **save_clip(work.folder, name, condition, _as_tensor(frames), None),
        "seconds": seconds,
    }


def _draw(pipe: Any, condition: Condition, case: TransferCase, run: Record) -> Any:
    """Frames ``(F, H, W, 3)`` in [0, 1]; the given clip is inverted if a technique needs it."""
    start = _latents_of(pipe, case.clip.frames)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(case.prompt.seed))
    steps, count = int(run["steps"]), len(case.clip.frames)
    techniques: list[Technique] = []
    for name, parameters in condition.techniques:
        store = FeatureStore()
        recorder = WordRecorder(store, [case.given.shape])
        invert(
            *(pipe, start, str(case.clip.caption)),
            steps=steps,
            techniques=[recorder],
            options={"num_frames": count},
        )
        built = build(name, {**parameters, "subjects": [case.subject.shape]})
        techniques.append(replace(cast(Any, built), features=store))
    height, width = case.clip.frames.shape[-2:]
    options = {"num_frames": count, "output_type": "np"}
    call = Call([case.prompt.text], (width, height), steps, run["guidance"], options=options)
    made, _ = run_pipeline(pipe, sampler_of(pipe), noise.to(start), call, techniques)
    frames = np.asarray(made[0], np.float32).clip(0, 1)
    return np.rint(frames * 255).astype(np.float32) / np.float32(255)


def _latents_of(pipe: Any, frames: Tensor) -> Tensor:
    """Latents ``(1, C, F, h, w)`` of frames ``(F, 3, H, W)``."""
    pictures = [Image.fromarray(frame) for frame in Video.of_tensor(frames, RATE).frames]
    return encode(pipe, pictures).transpose(0, 1)[None]


def _as_tensor(frames: Any) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _lines(entry: ClipMaker, records: Sequence[Record]) -> list[EffectLine]:
    """Lines of one technique, compared to plain clips."""
    plain, steered = (records_of(records, name) for name in (PLAIN, entry.technique))
    rule = "of objects in its colour; a frame without one counts as half the picture's diagonal"
    lost = [sum(r["lost"] for r in mine) for mine in (plain, steered)]
    note = f"{rule}: {lost[0]} of {sum(len(r['apart']) for r in plain)} plain, {lost[1]} steered"
    subject = Subject(SUITE, entry.technique, MOTION, setting_text(entry.parameters), entry.source)
    distances = [[r["distance"] for r in mine] for mine in (plain, steered)]
    shares = [[share_right(r) for r in mine] for mine in (plain, steered)]
    steps = [[r["step"] for r in mine] for mine in (plain, steered)]
    far, right = of_numbers(*distances, is_good=False), of_numbers(*shares, is_good=True)
    lines = [
        subject.line(DISTANCE, PLAIN, far, claimed=DISTANCE in entry.claims, note=note),
        subject.line(RIGHT, PLAIN, right, claimed=False),
        subject.line(STEP, PLAIN, of_numbers(*steps, is_good=False), claimed=False),
    ]
    if not any(lost):
        return lines
    both = [_where_both(a, b) for a, b in zip(plain, steered, strict=True)]
    near = compare_seen([a for a, _ in both], [b for _, b in both], "seen", is_good=False)
    return lines if near is None else [*lines, subject.line(SEEN, PLAIN, near, claimed=False)]


def _where_both(plain: Record, steered: Record) -> tuple[Record, Record]:
    """Mean distances over the frames in which both clips show the subject; ``None`` for none."""
    pairs = [
        (a, b)
        for a, b in zip(plain["apart"], steered["apart"], strict=True)
        if a is not None and b is not None
    ]
    if not pairs:
        return {"seen": None}, {"seen": None}
    means = np.mean(pairs, axis=0)
    return {"seen": float(means[0])}, {"seen": float(means[1])}
