"""What an inversion loses: rendered pictures to noise and back, beside what the decoder loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnctl.bench.journal import Journal
from attnctl.bench.machine import fingerprint, machine_record
from attnctl.errors import SettingError
from attnctl.inversion import decode, encode, invert, reconstruct
from attnctl.pipelines.edit_scores import psnr  # pyright: ignore[reportMissingImports]
from attnctl.shapes import CaptionSettings, draw_scenes, render, write_captions

GOAL_DB = 1.0
"""Largest mean loss beside the decoder's own, in dB."""

Remark = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to invert: a method, and the fixed-point iterations of each step."""

    method: str
    refinements: int = 0

    @classmethod
    def read(cls, text: str) -> Way:
        """Read ``ddim``, ``ddim+1`` or ``rf-solver``.

        Raises:
            SettingError: what follows the plus is no number.
        """
        method, plus, count = text.partition("+")
        if plus and not count.isdigit():
            raise SettingError(f"--way {text!r} must be a method, such as ddim, or ddim+1")
        return cls(method, int(count or 0))

    def __str__(self) -> str:
        return f"{self.method}+{self.refinements}" if self.refinements else self.method


@dataclass(frozen=True, slots=True)
class InversionSettings:
    """What is measured.

    Attributes:
        model: Bundled name or folder.
        ways: Ways to invert, such as ``("ddim", "ddim+1")``.
        count: Rendered pictures.
        steps: Steps of the sampler.
        prompt: ``"source"``: each picture's true caption; ``"empty"``.
        seed: Of the pictures.
        batch_size: Pictures inverted together.
    """

    model: str
    ways: tuple[str, ...]
    count: int = 50
    steps: int = 50
    prompt: str = "source"
    seed: int = 2026
    batch_size: int = 10

    def __post_init__(self) -> None:
        for way in self.ways:
            Way.read(way)
        if self.prompt not in ("source", "empty"):
            raise SettingError(f"--prompt {self.prompt!r} must be source or empty")


def usual_ways(pipe: Any) -> tuple[str, ...]:
    """What is measured of a model unless somebody chooses: plain, refined, second order."""
    from attnctl.editing.features import prediction_type

    if prediction_type(pipe.scheduler) == "flow":
        return ("fireflow", "euler+3", "euler", "rf-solver")
    return ("ddim+1", "ddim", "fireflow", "rf-solver")


def measure(
    pipe: Any, settings: InversionSettings, folder: Path, *, resume: bool, remark: Remark
) -> dict[str, Any]:
    """Invert every picture in every way, sample from the noise, and compare.

    Args:
        pipe: The model's pipeline.
        settings: What is measured.
        folder: Of the journal.
        resume: Go on with the journal that is there; other ways may be asked for.
        remark: Is told each finished batch.

    Returns:
        The result as plain values.
    """
    weights = fingerprint(pipe)
    same = {k: v for k, v in asdict(settings).items() if k not in ("ways", "batch_size")}
    journal = Journal(folder, {**same, "weights": weights})  # ways may be added later
    journal.open(resume=resume)
    pictures, captions = rendered(settings)
    for way in map(Way.read, settings.ways):
        for start in range(0, settings.count, settings.batch_size):
            chosen = range(start, min(start + settings.batch_size, settings.count))
            if all(journal.get(str(way), str(i)) for i in chosen):
                continue
            journal.forget(str(way), [str(i) for i in chosen])
            batch, texts = [pictures[i] for i in chosen], [captions[i] for i in chosen]
            found = _measured(pipe, settings, way, batch, texts)
            journal.add(
                [
                    {"condition": str(way), "id": str(i), **one}
                    for i, one in zip(chosen, found, strict=True)
                ]
            )
            lost = fmean(one["decoder_psnr"] - one["psnr"] for one in found)
            remark(f"{way}: {chosen.stop} of {settings.count}, these lost {lost:.2f} dB")
    return {
        "settings": asdict(settings),
        "weights": weights,
        "machine": machine_record(str(pipe.device)),
        "ways": [_summary(str(way), journal, settings) for way in settings.ways],
    }


def rendered(settings: InversionSettings) -> tuple[list[Image.Image], list[str]]:
    """Pictures of the shapes world, and what they truly show."""
    generator = torch.Generator().manual_seed(settings.seed)
    scenes = draw_scenes(settings.count, generator)
    captions = write_captions(scenes, generator, CaptionSettings(extra_share=0.0))
    pixels = (render(scenes).permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(picture) for picture in pixels], captions


def _measured(
    pipe: Any,
    settings: InversionSettings,
    way: Way,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
) -> list[dict[str, Any]]:
    prompts = list(captions) if settings.prompt == "source" else ""
    clean = encode(pipe, pictures)
    size = pictures[0].size
    inversion = invert(
        pipe, clean, prompts, method=way.method, refinements=way.refinements,
        steps=settings.steps, size=size,
    )  # fmt: skip
    back = reconstruct(pipe, inversion)
    shown = zip(pictures, decode(pipe, clean, size), decode(pipe, back, size), strict=True)
    errors = ((back - clean) ** 2).flatten(1).mean(1).tolist()
    deviations = inversion.noise.flatten(1).std(1).tolist()
    return [
        {
            "psnr": round(psnr(picture, again), 4),
            "decoder_psnr": round(psnr(picture, decoded), 4),
            "latent_error": error,
            "noise_deviation": round(deviation, 4),
            "evaluations": inversion.evaluations,
        }
        for (picture, decoded, again), error, deviation in zip(
            shown, errors, deviations, strict=True
        )
    ]


def _summary(way: str, journal: Journal, settings: InversionSettings) -> dict[str, Any]:
    found = [journal.get(way, str(i)) or {} for i in range(settings.count)]
    mean = {name: fmean(one[name] for one in found) for name in ("psnr", "decoder_psnr")}
    lost = mean["decoder_psnr"] - mean["psnr"]
    return {
        "way": way,
        "evaluations": found[0]["evaluations"],
        "psnr": round(mean["psnr"], 3),
        "decoder_psnr": round(mean["decoder_psnr"], 3),
        "lost_db": round(lost, 3),
        "most_lost_db": round(max(one["decoder_psnr"] - one["psnr"] for one in found), 3),
        "latent_error": fmean(one["latent_error"] for one in found),
        "noise_deviation": round(fmean(one["noise_deviation"] for one in found), 4),
        "within_goal": lost <= GOAL_DB,
        "pictures": found,
    }
