"""The localisation gate: do attention maps of nouns show where the noun's object will be?

``python -m attnctl.shapes.gate`` prints JSON. For correct pictures of two objects, at early
steps, the peak of a noun's cross-attention map should lie in the noun's own object's box.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from attnctl.shapes.captions import ObjectKind, Prompt, prompts
from attnctl.shapes.evaluate import SamplingSettings, draw_pictures, load_shapes, summarise
from attnctl.shapes.verifier import Verdict, verify

Box = tuple[float, float, float, float]
EARLY_STEPS = range(2, 12)
MAP_CELLS = 16
PASS_SHARE = 0.8


@dataclass
class MapRecorder:
    """Sums cross-attention maps of the conditional rows over layers and steps.

    Attributes:
        steps: Steps at which maps are taken, counted from 0.
        step: The current step.
        total: Sum of the maps, mean over heads, ``(B, cells, tokens)``; ``None`` before the first.
        count: How many maps were summed.
    """

    steps: range = EARLY_STEPS
    step: int = 0
    total: Tensor | None = None
    count: int = 0

    def add(self, probs: Tensor, heads: int) -> None:
        """Add one layer's weights, ``(rows * heads, cells, tokens)``, conditional rows last."""
        if self.step not in self.steps or probs.shape[1] != MAP_CELLS * MAP_CELLS:
            return
        maps = probs.unflatten(0, (-1, heads)).mean(1).chunk(2)[1]
        self.total = maps if self.total is None else self.total + maps
        self.count += 1

    def mean(self) -> Tensor:
        """Mean map, ``(B, cells, tokens)``; forgets the maps and starts again at step 0."""
        if self.total is None:
            raise ValueError("no maps were recorded; sample with at least 3 steps and guidance")
        mean = self.total / self.count
        self.step, self.total, self.count = 0, None, 0
        return mean

    def next_step(self, *_: Any) -> dict[str, Any]:
        """Count a step; a ``callback_on_step_end`` of the pipeline."""
        self.step += 1
        return {}


class RecordingProcessor(AttnProcessor):
    """Plain attention that shows its weights to a recorder."""

    def __init__(self, recorder: MapRecorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __call__(self, attn: Attention, *arguments: Any, **options: Any) -> Tensor:
        """Attend as ``AttnProcessor`` does; the weights pass the recorder on their way."""
        shown: Any = attn
        scores = attn.get_attention_scores

        def seen(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
            probs = scores(query, key, mask)
            self.recorder.add(probs, attn.heads)
            return probs

        shown.get_attention_scores = seen
        try:
            return super().__call__(attn, *arguments, **options)
        finally:
            del shown.get_attention_scores


def record_cross_attention(unet: UNet2DConditionModel, recorder: MapRecorder) -> None:
    """Put a recording processor on every cross-attention layer; the pipeline is for this alone."""
    for name, module in unet.named_modules():
        if name.endswith("attn2") and isinstance(module, Attention):
            module.set_processor(RecordingProcessor(recorder))


@dataclass
class Tally:
    """Where the peaks of maps lay; counts of objects."""

    objects: int = 0
    own: int = 0
    near_own: int = 0
    other: int = 0

    def add(self, peak: tuple[float, float], own: Box, others: Sequence[Box]) -> None:
        """Count one peak, ``(x, y)`` in pixels; near is within one cell, 4 pixels."""
        self.objects += 1
        self.own += _inside(peak, own, 0.0)
        self.near_own += _inside(peak, own, 4.0)
        self.other += any(_inside(peak, box, 0.0) for box in others)

    def shares(self) -> dict[str, float | int]:
        """Counts as shares of the objects."""
        count = max(self.objects, 1)
        return {
            "objects": self.objects,
            "own_box": round(self.own / count, 3),
            "own_box_or_next_cell": round(self.near_own / count, 3),
            "other_box": round(self.other / count, 3),
        }


def _inside(point: tuple[float, float], box: Box, margin: float) -> bool:
    (x, y), (left, top, right, bottom) = point, box
    return left - margin <= x < right + margin and top - margin <= y < bottom + margin


def _peak_px(heat: Tensor) -> tuple[float, float]:
    cell = int(heat.argmax())
    width = 64 / MAP_CELLS
    return ((cell % MAP_CELLS + 0.5) * width, (cell // MAP_CELLS + 0.5) * width)


def measure(
    pipeline: StableDiffusionPipeline, asked: Sequence[Prompt], settings: SamplingSettings
) -> dict[str, Any]:
    """Sample prompts and tally where the maps of nouns and colour words have their peaks.

    Args:
        pipeline: A shapes pipeline; its attention processors are replaced.
        asked: Prompts whose objects differ in colour and shape.
        settings: How to sample.

    Returns:
        Shares for nouns and colours over the correct pictures, the attention mass on words, and
        how many pictures were correct.
    """
    recorder = MapRecorder()
    record_cross_attention(pipeline.unet, recorder)
    nouns, colours = Tally(), Tally()
    masses: list[float] = []
    verdicts: list[Verdict] = []
    for start in range(0, len(asked), settings.batch):
        part = asked[start : start + settings.batch]
        drawn = list(
            draw_pictures(pipeline, part, settings, callback_on_step_end=recorder.next_step)
        )
        for (prompt, picture), maps in zip(drawn, recorder.mean(), strict=True):
            tokens: list[int] = pipeline.tokenizer(prompt.text)["input_ids"]
            masses.append(float(maps[:, 1 : len(tokens) - 1].sum(1).mean()))
            verdict = verify(picture, prompt.text)
            verdicts.append(verdict)
            if verdict.exact:
                _tally(pipeline, tokens, maps, verdict, nouns, colours)
    return {
        "nouns": nouns.shares(),
        "colours": colours.shares(),
        "mass_on_words": round(float(np.mean(masses)), 3),
        "sampling": summarise(verdicts),
        "passed": nouns.near_own >= PASS_SHARE * max(nouns.objects, 1),
    }


def _tally(
    pipeline: StableDiffusionPipeline,
    tokens: list[int],
    maps: Tensor,
    verdict: Verdict,
    nouns: Tally,
    colours: Tally,
) -> None:
    def box(kind: ObjectKind) -> Box:
        found = verdict.box_of(kind)
        if found is None:
            raise ValueError(f"{kind} is not in the picture")
        return found

    for kind in verdict.wanted:
        others = [box(other) for other in verdict.wanted if other != kind]
        for word, tally in ((kind.shape, nouns), (kind.colour, colours)):
            number = pipeline.tokenizer(word, add_special_tokens=False)["input_ids"][0]
            tally.add(_peak_px(maps[:, tokens.index(number)]), box(kind), others)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns 0 if the gate is passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m attnctl.shapes.gate", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="number of two-object prompts")
    parser.add_argument("--split", default="validation", help="name of the prompt list")
    parser.add_argument("--model", type=Path, help="pipeline folder; default is the bundled one")
    chosen = parser.parse_args(words)
    pipeline = load_shapes(chosen.model)
    with torch.no_grad():
        result = measure(pipeline, prompts(chosen.split, 2, chosen.count), SamplingSettings())
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
