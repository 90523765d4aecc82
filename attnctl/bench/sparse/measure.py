"""Fast attention beside dense attention: how near the pictures are, how fast, how much memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from attnctl.bench.journal import Journal
from attnctl.bench.machine import fingerprint, machine_record
from attnctl.bench.pictures import is_whole, pixels_hash
from attnctl.bench.sparse.conditions import Way, is_dense
from attnctl.bench.sparse.fidelity import (
    median_decibels,
    signal_to_noise,
    structural_similarity,
    to_pixels,
)
from attnctl.bench.sparse.layers import LayerErrors
from attnctl.bench.sparse.speed import SpeedSettings, measure_speed
from attnctl.bench.statistics import bootstrap_interval, median
from attnctl.bench.steering import SteeringSettings
from attnctl.errors import SettingError
from attnctl.files import write_json
from attnctl.imaging import open_picture, save_png, scheduler_record
from attnctl.recipes import Recipe
from attnctl.shapes.captions import Prompt
from attnctl.shapes.evaluate import SAMPLING, SamplingSettings

FORMAT = 1
RESULT_FILE = "results.json"

Say = Callable[[str], None]
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SparseSettings:
    """What is measured.

    Attributes:
        drawing: Model, prompts, steps and guidance of the pictures; each is drawn on its own.
        size_px: Side of the pictures.
        speed: What is timed.
    """

    drawing: SteeringSettings
    size_px: int = 128
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def asked(self) -> list[tuple[str, Prompt]]:
        """Prompts with their ids, the numbers of objects in turn."""
        batches = self.drawing.asked()
        listed = [one for batch in batches for one in batch]
        return sorted(listed, key=lambda one: one[0].partition("-")[::-1])


@dataclass(frozen=True, slots=True)
class Sparse:
    """A finished measurement.

    Attributes:
        record: Plain values: settings, versions, results, every picture and every round.
        entries: One record a picture.
        folder: Where everything lies.
    """

    record: dict[str, Any]
    entries: list[dict[str, Any]]
    folder: Path

    def line(self, name: str) -> dict[str, Any]:
        """What the pictures of one way say."""
        return next(line for line in self.record["fidelity"] if line["condition"] == name)

    def picture(self, entry: Entry) -> Image.Image:
        """The picture of an entry."""
        return open_picture(self.folder / str(entry["file"]))


def measure(
    pipe: Any,
    settings: SparseSettings,
    ways: Sequence[Way],
    folder: Path,
    *,
    resume: bool = False,
    say: Say = lambda _text: None,
) -> Sparse:
    """Draw the same prompts and seeds in every way, compare with dense, then time each way.

    Args:
        pipe: A text-to-image pipeline.
        settings: What is measured.
        ways: What is compared, dense first, as `choose_ways` gives them.
        folder: For pictures, journals and result.
        resume: Go on with a run that was stopped, at whatever point.
        say: Told about every picture and round.

    Raises:
        SettingError: the folder holds another run, or a setting cannot be used.
    """
    factor = int(pipe.vae_scale_factor)
    if settings.size_px % (2 * factor):
        raise SettingError(f"--size {settings.size_px} must be a multiple of {2 * factor} pixels")
    run = {
        "drawing": asdict(settings.drawing),
        "size_px": settings.size_px,
        "ways": [way.to_plain() for way in ways],
        "model": {
            "pipeline": type(pipe).__name__,
            "weights": fingerprint(pipe),
            "scheduler": scheduler_record(pipe.scheduler),
        },
        "machine": machine_record(str(pipe.device)),
    }
    journal = Journal(folder, run)
    journal.open(resume=resume)
    entries = _Drawing(pipe, settings, journal, folder, say).all(ways)
    speed = None
    if settings.speed.repeats:
        cells = settings.size_px // factor
        at = folder / "speed"
        speed = measure_speed(pipe, ways, settings.speed, cells, at, resume=resume, say=say)
    record = {
        "format": FORMAT,
        "benchmark": "sparse",
        **run,
        "fidelity": [_summary(way, entries) for way in ways if _drawn(way, entries)],
        "speed": speed,
        "absent": {w.name: r for w in ways if w.peer and (r := w.peer.why_missing())},
        "pictures": [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries],
    }
    write_json(folder / RESULT_FILE, record)
    return Sparse(record, entries, folder)


@dataclass(slots=True)
class _Drawing:
    pipe: Any
    settings: SparseSettings
    journal: Journal
    folder: Path
    say: Say

    def all(self, ways: Sequence[Way]) -> list[dict[str, Any]]:
        """Entries of every prompt in every way that can run, prompt by prompt."""
        able = [way for way in ways if way.peer is None or way.peer.why_not(self.pipe) is None]
        asked = self.settings.asked()
        entries: list[dict[str, Any]] = []
        for number, (name, prompt) in enumerate(asked, 1):
            dense: Image.Image | None = None
            for way in able:
                entry = self.journal.get(way.name, name)
                if entry is None or not is_whole(self.folder / entry["file"], entry["pixels"]):
                    self.journal.forget(way.name, [name])
                    entry = self._draw(way, name, prompt, dense)
                    self.journal.add([entry])
                if is_dense(way):
                    dense = open_picture(self.folder / str(entry["file"]))
                entries.append(entry)
            self.say(f"prompt {number} of {len(asked)}: {prompt.text}")
        return entries

    def _draw(
        self, way: Way, name: str, prompt: Prompt, dense: Image.Image | None
    ) -> dict[str, Any]:
        recipe = self._recipe(way, prompt)
        observer = LayerErrors()
        with way.attached(self.pipe, recipe.build_techniques(), observer) as session:
            image = self._call(recipe, prompt)
            report = None if session is None else session.report()
        file = f"pictures/{name}-{way.condition.slug}.png"
        save_png(image, self.folder / file, {"recipe": recipe.to_dict(), "prompt": prompt.text})
        entry = {
            "id": name,
            "condition": way.name,
            "prompt": prompt.text,
            "seed": prompt.seed,
            "file": file,
            "pixels": pixels_hash(image),
            "layers": {} if report is None else observer.by_site(report),
            "notes": [] if report is None else report.notes,
            "warnings": [] if report is None else report.warnings,
            "cache_bytes": 0 if report is None else _cached(report),
        }
        return entry if dense is None else entry | _compare(dense, image)

    def _recipe(self, way: Way, prompt: Prompt) -> Recipe:
        drawing = self.settings.drawing
        return Recipe.from_dict(
            {
                "model": drawing.model,
                "prompt": prompt.text,
                "seed": prompt.seed,
                "steps": drawing.steps,
                "guidance": drawing.guidance,
                "size": f"{self.settings.size_px}x{self.settings.size_px}",
                "techniques": way.condition.entries([prompt]),
            },
            name="",
        )

    def _call(self, recipe: Recipe, prompt: Prompt) -> Image.Image:
        usual = SAMPLING.get(type(self.pipe).__name__, SamplingSettings())
        return self.pipe(
            prompt.text,
            num_inference_steps=recipe.steps,
            guidance_scale=recipe.guidance,
            height=self.settings.size_px,
            width=self.settings.size_px,
            generator=torch.Generator().manual_seed(prompt.seed),
            **usual.options,
        ).images[0]


def _cached(report: Any) -> int:
    return sum(use.peak_bytes for use in report.caches.values())


def _compare(dense: Image.Image, image: Image.Image) -> dict[str, Any]:
    """Decibels (``None``: equal pictures) and structural similarity to the dense picture."""
    pair = (to_pixels(dense), to_pixels(image))
    decibels = signal_to_noise(*pair)
    return {
        "psnr": None if math.isinf(decibels) else decibels,
        "ssim": structural_similarity(*pair),
    }


def _drawn(way: Way, entries: Sequence[Entry]) -> bool:
    return any(entry["condition"] == way.name for entry in entries)


def _summary(way: Way, entries: Sequence[Entry]) -> dict[str, Any]:
    """Medians over the pictures of one way, and the gain over the way that it stands beside."""
    mine = [entry for entry in entries if entry["condition"] == way.name]
    line: dict[str, Any] = {"condition": way.name, "pictures": len(mine)}
    if is_dense(way):
        return line
    line["psnr"] = median_decibels([entry["psnr"] for entry in mine])
    line["ssim"] = median([entry["ssim"] for entry in mine])
    line["cache_bytes"] = max(entry["cache_bytes"] for entry in mine)
    line["notes"] = mine[0]["notes"]
    sites = sorted({site for entry in mine for site in entry["layers"]})
    line["layers"] = {
        site: median([e["layers"][site] for e in mine if site in e["layers"]]) for site in sites
    }
    other = {entry["id"]: entry for entry in entries if entry["condition"] == way.beside}
    return line | (_gain(mine, other) if way.beside and other else {})


def _gain(mine: Sequence[Entry], other: Mapping[str, Entry]) -> dict[str, Any]:
    """Decibels gained over another way, picture by picture, where both differ from dense."""
    pairs = [(entry["psnr"], other[entry["id"]]["psnr"]) for entry in mine]
    gains = [a - b for a, b in pairs if a is not None and b is not None]
    if not gains:
        return {}
    return {
        "gain": {
            "median": median(gains),
            "mean": sum(gains) / len(gains),
            "mean_interval": bootstrap_interval(gains, [1.0] * len(gains)),
            "least": min(gains),
            "pictures": len(gains),
        }
    }
