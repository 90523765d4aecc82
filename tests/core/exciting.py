"""Attend-and-Excite on the tiny pipelines, for its tests."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from attnctl import AttendAndExcite, attach, until
from attnctl.report import Report
from tests.support.pipelines import PROMPT, generate

SUBJECTS = [2, 5]  # cat and frog in PROMPT
TWO = ["a cat and a frog", "a red dog on the blue photo"]


def excite(
    pipe: DiffusionPipeline,
    technique: AttendAndExcite,
    prompt: str | list[str] = PROMPT,
    **options: Any,
) -> tuple[Tensor, Report]:
    with attach(pipe, technique) as session:
        return generate(pipe, prompt, **options), session.report()


def small(subjects: Any = ("cat", "frog"), **settings: Any) -> AttendAndExcite:
    """Two steps of guidance on the tiny pipelines' maps, with a step size that shows."""
    given = {"steps": until(2), "thresholds": {}, "resolution": 8, **settings}
    return AttendAndExcite(subjects, **given)
