"""Ways to put an object beside that of a given scene, and what is measured of the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.bench.edit.methods import Method
from attnctl.bench.edit.scores import psnr, score
from attnctl.bench.effect.gallery import Shot
from attnctl.bench.effect.scene_cases import SceneCase
from attnctl.inversion import Inversion, decode, encode, invert, noised_trajectory, sampler_of
from attnctl.inversion.driven import Solver
from attnctl.inversion.hosts import Call, drive, run_pipeline, working_latents
from attnctl.inversion.solvers import noise_and_sample
from attnctl.pipelines.compose import compose  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.compose_places import (  # pyright: ignore[reportMissingImports]
    Placement,
    place,
)
from attnctl.pipelines.compose_settings import (  # pyright: ignore[reportMissingImports]
    ComposeSettings,
)
from attnctl.shapes.verifier import verify
from attnctl.techniques.grad_sam import GradSAM


@dataclass(slots=True)
class Stage:
    """What the ways share for one scene.

    Attributes:
        pipe: The pipeline.
        case: The scene.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance; compositions have their own.
    """

    pipe: Any
    case: SceneCase
    steps: int
    guidance: float
    _placement: Placement | None = None
    _inverted: Inversion | None = None

    @property
    def placement(self) -> Placement:
        """Where the object goes."""
        case = self.case
        if self._placement is None:
            self._placement = place(self.pipe, case.scene, case.subject, case.mask, case.box)
        return self._placement

    def prepare(self, way: Method) -> None:
        """Make the inversion that compositions of a scene share, so that no way pays for it."""
        if way.kind == "compose" and self._inverted is None:
            pictures = [self.case.scene, self.placement.canvas]
            self._inverted = invert(self.pipe, pictures, "", steps=self.steps)

    @property
    def inverted(self) -> Inversion | None:
        """That inversion."""
        return self._inverted

    @property
    def call(self) -> Call:
        """One call of the pipeline with the scene's prompt."""
        return Call([self.case.prompt], self.case.scene.size, self.steps, self.guidance)

    def solved(self, solver: Solver) -> Image.Image:
        """Let a solver run on the scene."""
        run = drive(self.pipe, solver, encode(self.pipe, [self.case.scene]), self.call)
        return self.decoded(run.latents)

    def decoded(self, latents: Tensor) -> Image.Image:
        """The picture of latents."""
        return decode(self.pipe, latents, self.case.scene.size)[0]


def make(stage: Stage, way: Method) -> Shot:
    """Make one picture and score it."""
    picture = WAYS[way.kind](stage, dict(way.settings))
    found = score(stage.case.edit, picture)
    scores: dict[str, Any] = {key: found[key] for key in ("reached", "kept", "psnr", "seen")}
    scores["all_right"] = verify(picture, stage.case.edit.target).all_right
    if way.kind == "compose":
        scores |= placed_scores(stage, picture)
    return Shot(picture, scores)


def placed_scores(stage: Stage, picture: Image.Image) -> dict[str, float]:
    """PSNR, dB: of the object to what pasting gives, and of the scene outside of the box."""
    made, pasted, scene = map(_pixels, (picture, stage.placement.pasted, stage.case.scene))
    on_object = (pasted != scene).any(axis=2)
    outside = ~stage.case.box_px
    return {
        "psnr_object": psnr(pasted[on_object], made[on_object]),
        "psnr_outside": psnr(scene[outside], made[outside]),
    }


def _compose(stage: Stage, settings: dict[str, Any]) -> Image.Image:
    case = stage.case
    made = compose(
        *(stage.pipe, case.scene, case.subject, case.prompt),
        words=[str(case.kind)],
        box=case.box,
        mask=case.mask,
        settings=ComposeSettings(steps=stage.steps, seed=case.edit.seed, **settings),
        inversion=stage.inverted,
    )
    return made.composed


def _plain(stage: Stage, settings: dict[str, Any]) -> Image.Image:
    return stage.solved(noise_and_sample(0, stage.case.edit.seed, keeps_picture=False))


def _half_way(stage: Stage, settings: dict[str, Any]) -> Image.Image:
    first = stage.steps - max(1, round(settings["strength"] * stage.steps))
    return stage.solved(noise_and_sample(first, stage.case.edit.seed))


def _grad_sam(stage: Stage, settings: dict[str, Any]) -> Image.Image:
    """From the noise of the plain picture, which the scene has at every level, too."""
    case, pipe = stage.case, stage.pipe
    given = noised_trajectory(pipe, case.scene, steps=stage.steps, seed=case.edit.seed)
    noise = torch.randn(
        given.noise.shape, generator=torch.Generator("cpu").manual_seed(case.edit.seed)
    )
    technique = GradSAM([str(case.kind)], given, **settings)
    start = working_latents(pipe, noise)
    latents, _ = run_pipeline(pipe, sampler_of(pipe), start, stage.call, [technique])
    return stage.decoded(latents)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(np.float64) / 255


WAYS: dict[str, Callable[[Stage, dict[str, Any]], Image.Image]] = {
    "compose": _compose,
    "plain": _plain,
    "sdedit": _half_way,
    "grad-sam": _grad_sam,
}
"""Ways by kind; each takes the stage and the settings, and gives the picture."""
