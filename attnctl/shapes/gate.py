"""The localisation gate: do attention maps of nouns show where the noun's object will be?

``python -m attnctl.shapes.gate`` prints JSON. For correct pictures of two objects, at early
steps, the peak of a noun's map should lie in the noun's own object's box.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnctl.schedule import between
from attnctl.session import attach
from attnctl.shapes.captions import ObjectKind, Prompt, prompts
from attnctl.shapes.evaluate import (
    SamplingSettings,
    draw_pictures,
    load_shapes,
    sampling_of,
    summarise,
)
from attnctl.shapes.verifier import Verdict, verify
from attnctl.techniques.heat_maps import HeatMaps
from attnctl.where import Where

Box = tuple[float, float, float, float]
EARLY_STEPS = between(0.08, 0.48)  # 2 to 11 of 25
PICTURE_PX = 64
PASS_SHARE = 0.8
WHERE = {"StableDiffusionPipeline": "cross:res=16", "StableDiffusion3Pipeline": "joint"}


@dataclass
class Tally:
    """Where the peaks of maps lay; counts of objects."""

    objects: int = 0
    own: int = 0
    near_own: int = 0
    other: int = 0

    def add(self, peak: tuple[float, float], own: Box, others: Sequence[Box]) -> None:
        """Count one peak, ``(x, y)`` in pixels; near is within 4 pixels."""
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
    cells = heat.shape[-1]
    width = PICTURE_PX / cells
    return ((cell % cells + 0.5) * width, (cell // cells + 0.5) * width)


def measure(pipeline: Any, asked: Sequence[Prompt], settings: SamplingSettings) -> dict[str, Any]:
    """Sample prompts and tally where the maps of nouns and colour words have their peaks.

    Args:
        pipeline: A shapes pipeline.
        asked: Prompts whose objects differ in colour and shape.
        settings: How to sample.

    Returns:
        Shares for nouns and colours over the correct pictures, the attention mass on words, and
        how many pictures were correct.
    """
    heat_maps = HeatMaps(where=Where(WHERE[type(pipeline).__name__]), steps=EARLY_STEPS)
    nouns, colours = Tally(), Tally()
    masses: list[float] = []
    verdicts: list[Verdict] = []
    with attach(pipeline, heat_maps) as session:
        for start in range(0, len(asked), settings.batch):
            drawn = list(draw_pictures(pipeline, asked[start : start + settings.batch], settings))
            for item, (prompt, picture) in enumerate(drawn):
                tokens: list[int] = pipeline.tokenizer(prompt.text)["input_ids"]
                maps = [session.maps.token(p, item=item, absolute=True) for p in range(len(tokens))]
                masses.append(float(torch.stack(maps[1:-1]).sum(0).mean()))
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
    pipeline: Any,
    tokens: list[int],
    maps: list[Tensor],
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
            tally.add(_peak_px(maps[tokens.index(number)]), box(kind), others)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns 0 if the gate is passed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m attnctl.shapes.gate", description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="number of two-object prompts")
    parser.add_argument("--split", default="validation", help="name of the prompt list")
    parser.add_argument("--model", default="shapes", help="bundled name or pipeline folder")
    chosen = parser.parse_args(words)
    pipeline = load_shapes(chosen.model)
    with torch.no_grad():
        result = measure(pipeline, prompts(chosen.split, 2, chosen.count), sampling_of(pipeline))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
