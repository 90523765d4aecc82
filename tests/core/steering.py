"""One technique of each kind on the tiny Stable Diffusion pipelines."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from attnctl import AttendAndExcite, HeatMaps, Session, Technique, attach
from tests.core.samples import Perturbed, Temperature
from tests.support.pipelines import generate


def steering() -> list[Technique]:
    """A technique of each kind: gradient, edit, added row, reader."""
    excite = AttendAndExcite(["cat"], thresholds={0: 0.03}, scale_factor=100, resolution=8)
    return [excite, Temperature(where="mid", factor=2.0), Perturbed(where="mid:self"), HeatMaps()]


def steered(pipe: DiffusionPipeline, *args: Any, **options: Any) -> tuple[Tensor, Session]:
    with attach(pipe, steering()) as session:
        return generate(pipe, *args, **options), session
