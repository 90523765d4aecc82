"""How often plain sampling draws what a caption names.

``python -m attnctl.shapes.evaluate --objects 2 --count 200 --split validation`` prints JSON.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from attnctl.bench.statistics import wilson_interval
from attnctl.errors import SettingError
from attnctl.loading import load_pipeline
from attnctl.shapes.captions import Prompt, prompts
from attnctl.shapes.verifier import Verdict, verify


@dataclass(frozen=True)
class SamplingSettings:
    """How pictures are sampled.

    Attributes:
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance; 1 is none.
        batch: Pictures at a time.
        options: More arguments of the pipeline's call.
    """

    steps: int = 25
    guidance: float = 5.0
    batch: int = 10
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


SAMPLING = {
    "StableDiffusionPipeline": SamplingSettings(),
    # Without a T5 encoder its tokens are zeros: one is as good as 256, and much cheaper.
    "StableDiffusion3Pipeline": SamplingSettings(20, 4.0, options={"max_sequence_length": 1}),
}
"""How each kind of pipeline is usually sampled, by the name of its class."""


def sampling_of(pipeline: Any) -> SamplingSettings:
    """How a shapes pipeline is usually sampled.

    Raises:
        SettingError: it is of no kind that a shapes model has.
    """
    name = type(pipeline).__name__
    if name not in SAMPLING:
        raise SettingError(f"no settings for sampling a {name}; known: {', '.join(SAMPLING)}")
    return SAMPLING[name]


def load_shapes(model: str | Path = "shapes") -> Any:
    """Load a shapes pipeline in float32, by name or folder, without progress bars."""
    pipeline = load_pipeline(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_pictures(
    pipeline: Any,
    asked: Sequence[Prompt],
    settings: SamplingSettings | None = None,
) -> Iterator[tuple[Prompt, NDArray[np.float32]]]:
    """Sample one picture a prompt, each from its own seed.

    Args:
        pipeline: A shapes pipeline.
        asked: Prompts with their seeds.
        settings: How to sample; by default as usual for the kind of pipeline.

    Yields:
        Prompts and pictures ``(H, W, 3)``, float32 in [0, 1].
    """
    chosen = settings or sampling_of(pipeline)
    for start in range(0, len(asked), chosen.batch):
        part = asked[start : start + chosen.batch]
        generators = [torch.Generator().manual_seed(prompt.seed) for prompt in part]
        pictures: list[NDArray[np.float32]] = pipeline(
            [prompt.text for prompt in part],
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance,
            generator=generators,
            output_type="np",
            **chosen.options,
        ).images
        yield from zip(part, pictures, strict=True)


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Count verdicts: all objects right, nothing extra, neglect; each with its interval."""
    count = len(verdicts)
    counts = {
        "all_right": sum(v.all_right for v in verdicts),
        "exact": sum(v.exact for v in verdicts),
        "neglect": sum(v.is_neglect for v in verdicts),
        "absence": sum(v.is_absence for v in verdicts),
    }
    summary: dict[str, Any] = {"pictures": count}
    for name, hits in counts.items():
        low, high = wilson_interval(hits, count)
        summary[name] = {
            "count": hits,
            "percent": round(100 * hits / count, 1),
            "interval_percent": [round(100 * low, 1), round(100 * high, 1)],
        }
    summary["mean_objects_seen"] = round(sum(len(v.found) for v in verdicts) / count, 2)
    return summary


def save_sheet(
    rows: Sequence[tuple[Prompt, NDArray[np.float32], Verdict]], path: Path, columns: int = 10
) -> None:
    """Save pictures side by side with caption and verdict below each, as one PNG."""
    cell_width, cell_height, scale = 150, 176, 2
    lines = math.ceil(len(rows) / columns)
    sheet = Image.new("RGB", (columns * cell_width, lines * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (prompt, picture, verdict) in enumerate(rows):
        left, top = (index % columns) * cell_width, (index // columns) * cell_height
        image = Image.fromarray((picture * 255).round().astype(np.uint8))
        sheet.paste(image.resize((image.width * scale, image.height * scale)), (left + 8, top + 4))
        text = " + ".join(str(kind) for kind in prompt.objects)
        pen.text((left + 4, top + 134), text[:25], fill="black")
        pen.text((left + 4, top + 145), text[25:50], fill="black")
        pen.text((left + 4, top + 157), verdict.label()[:25], fill="red")
    sheet.save(path)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m attnctl.shapes.evaluate", description=__doc__)
    parser.add_argument("--objects", type=int, default=1, help="objects a prompt, 1 to 3")
    parser.add_argument("--count", type=int, default=200, help="number of prompts")
    parser.add_argument("--split", default="validation", help="name of the prompt list")
    parser.add_argument("--steps", type=int, help="denoising steps; usual ones by default")
    parser.add_argument("--guidance", type=float, help="guidance scale; the usual one by default")
    parser.add_argument("--model", default="shapes", help="bundled name or pipeline folder")
    parser.add_argument("--sheet", type=Path, help="also save the pictures as one PNG")
    chosen = parser.parse_args(words)
    pipeline = load_shapes(chosen.model)
    started = time.perf_counter()
    settings = sampling_of(pipeline)
    settings = replace(
        settings,
        steps=settings.steps if chosen.steps is None else chosen.steps,
        guidance=settings.guidance if chosen.guidance is None else chosen.guidance,
    )
    asked = prompts(chosen.split, chosen.objects, chosen.count)
    rows = [(p, i, verify(i, p.text)) for p, i in draw_pictures(pipeline, asked, settings)]
    if chosen.sheet:
        save_sheet(rows, chosen.sheet)
    summary = summarise([verdict for _, _, verdict in rows])
    summary |= {"objects": chosen.objects, "split": chosen.split, "steps": settings.steps}
    summary |= {"guidance": settings.guidance}
    summary["seconds_per_picture"] = round((time.perf_counter() - started) / chosen.count, 3)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
