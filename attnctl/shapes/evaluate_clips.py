"""How often sampled clips show what a caption names, in every frame, and how things move.

``python -m attnctl.shapes.evaluate_clips --objects 1 --count 20 --sheet clips.png`` prints JSON.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from attnctl.bench.statistics import wilson_interval
from attnctl.imaging import save_png
from attnctl.pipelines.video_sheets import shown_frames  # pyright: ignore[reportMissingImports]
from attnctl.shapes.captions import Prompt, prompts
from attnctl.shapes.clips import ClipSettings, draw_clip
from attnctl.shapes.evaluate import SamplingSettings, load_shapes
from attnctl.shapes.motion import FRAMES
from attnctl.shapes.verifier import Verdict, verify
from attnctl.shapes.world import WorldSettings
from attnctl.sheets import Cell, Row, draw_sheet

SHOWN_FRAMES = 8


@dataclass(frozen=True)
class ClipVerdict:
    """What the frames of one clip show.

    Attributes:
        prompt: What was asked for.
        frames: One verdict a frame.
    """

    prompt: Prompt
    frames: tuple[Verdict, ...]

    @property
    def frames_right(self) -> int:
        """Frames that show every named object."""
        return sum(verdict.all_right for verdict in self.frames)

    @property
    def all_right(self) -> bool:
        """Whether every frame shows every named object."""
        return self.frames_right == len(self.frames)

    def speeds(self) -> list[float]:
        """Pixels from one frame to the next, of each named object where both frames show it."""
        return [float(np.linalg.norm(b - a)) for way in self._ways() for a, b in pairwise(way)
                if a is not None and b is not None]  # fmt: skip

    def shakes(self) -> list[float]:
        """Pixels between a place and the middle of the places before and after it."""
        return [float(np.linalg.norm(b - (a + c) / 2)) for way in self._ways()
                for a, b, c in zip(way, way[1:], way[2:], strict=False)
                if a is not None and b is not None and c is not None]  # fmt: skip

    def _ways(self) -> Iterator[list[NDArray[np.float64] | None]]:
        """The middle of each named object in each frame; ``None`` where it is not seen."""
        for kind in self.prompt.objects:
            boxes = [verdict.box_of(kind) for verdict in self.frames]
            yield [b and np.array([b[0] + b[2], b[1] + b[3]]) / 2 for b in boxes]  # type: ignore[misc]


def draw_clips(
    pipeline: Any,
    asked: Sequence[Prompt],
    settings: SamplingSettings | None = None,
    frames: int = FRAMES,
) -> Iterator[tuple[Prompt, NDArray[np.float32]]]:
    """Sample one clip a prompt, each from its own seed.

    Args:
        pipeline: ``shapes-motion`` or one like it.
        asked: Prompts with their seeds.
        settings: How to sample.
        frames: Frames of a clip.

    Yields:
        Prompts and frames ``(F, H, W, 3)``, float32 in [0, 1].
    """
    chosen = settings or SamplingSettings()
    for prompt in asked:
        made = pipeline(
            prompt.text,
            num_frames=frames,
            num_inference_steps=chosen.steps,
            guidance_scale=chosen.guidance,
            generator=torch.Generator().manual_seed(prompt.seed),
            output_type="np",
            **chosen.options,
        ).frames[0]
        yield prompt, np.asarray(made, np.float32)


def judge(prompt: Prompt, frames: NDArray[np.float32]) -> ClipVerdict:
    """Look at every frame of a clip ``(F, H, W, 3)``."""
    return ClipVerdict(prompt, tuple(verify(frame, prompt.text) for frame in frames))


def summarise_clips(verdicts: Sequence[ClipVerdict]) -> dict[str, Any]:
    """Shares of frames and of clips that are right, and the medians of speed and shake."""
    frames = sum(len(v.frames) for v in verdicts)
    right, whole = sum(v.frames_right for v in verdicts), sum(v.all_right for v in verdicts)
    low, high = wilson_interval(whole, len(verdicts))
    return {
        "clips": len(verdicts),
        "frames_right_percent": round(100 * right / frames, 1),
        "clips_right_percent": round(100 * whole / len(verdicts), 1),
        "clips_right_interval_percent": [round(100 * low, 1), round(100 * high, 1)],
        "speed_px": _median([s for v in verdicts for s in v.speeds()]),
        "shake_px": _median([s for v in verdicts for s in v.shakes()]),
    }


def rendered_clips(count: int, objects: int) -> Iterator[tuple[Prompt, NDArray[np.float32]]]:
    """Clips of the world itself: what a perfect model would come to."""
    weights = tuple(float(n == objects) for n in (1, 2, 3))
    settings = ClipSettings(
        FRAMES, WorldSettings(count_weights=(weights[0], weights[1], weights[2]))
    )
    generator = torch.Generator().manual_seed(77)
    for number in range(count):
        clip = draw_clip(generator, settings)
        prompt = Prompt(str(clip.caption), clip.caption.objects, number)
        yield prompt, clip.frames.permute(0, 2, 3, 1).numpy()


def draw_clip_sheet(
    rows: Sequence[tuple[ClipVerdict, NDArray[np.float32]]], path: Path, title: str
) -> None:
    """Save some frames of each clip side by side, one clip a row, as one PNG."""
    drawn: list[Row] = []
    for verdict, frames in rows:
        cells = [
            Cell(_picture(frames[t]), f"{t}: {verdict.frames[t].label()}",
                 verdict.frames[t].all_right)
            for t in shown_frames(len(frames), SHOWN_FRAMES)
        ]  # fmt: skip
        drawn.append(Row(verdict.prompt.text, cells))
    save_png(draw_sheet(drawn, title=title), path)


def _picture(frame: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((frame * 255).round().astype(np.uint8))


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 2) if values else None


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m attnctl.shapes.evaluate_clips", description=__doc__
    )
    parser.add_argument("--objects", type=int, default=1, help="objects a prompt, 1 to 3")
    parser.add_argument("--count", type=int, default=20, help="number of clips")
    parser.add_argument("--split", default="validation", help="name of the prompt list")
    parser.add_argument("--model", default="shapes-motion", help="bundled name or pipeline folder")
    parser.add_argument("--steps", type=int, default=SamplingSettings().steps)
    parser.add_argument("--guidance", type=float, default=SamplingSettings().guidance)
    parser.add_argument("--rendered", action="store_true", help="clips of the world, not a model's")
    parser.add_argument("--sheet", type=Path, help="also save frames of the clips as one PNG")
    chosen = parser.parse_args(words)
    if chosen.rendered:
        made = rendered_clips(chosen.count, chosen.objects)
    else:
        asked = prompts(chosen.split, chosen.objects, chosen.count)
        settings = SamplingSettings(chosen.steps, chosen.guidance)
        made = draw_clips(load_shapes(chosen.model), asked, settings)
    rows = [(judge(prompt, frames), frames) for prompt, frames in made]
    if chosen.sheet:
        draw_clip_sheet(
            rows, chosen.sheet, f"{chosen.model}: first prompts of the list, not picked"
        )
    summary = summarise_clips([verdict for verdict, _ in rows])
    sys.stdout.write(json.dumps({**summary, "objects": chosen.objects}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
