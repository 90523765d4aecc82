"""Work of the first tab: the pictures of a recipe, each with its plain twin."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnctl import HeatMaps
from attnctl.errors import UnsupportedModelError
from attnctl.pipelines.fitting import check, resolve  # pyright: ignore[reportMissingImports]
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    Job as Shot,
)
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    draw,
    jobs_of,
)
from attnctl.recipes import Recipe

from .job import Job, Maps, Pair
from .preview import LatentPreview


@dataclass(frozen=True, slots=True)
class Order:
    """What one visitor wants.

    Attributes:
        recipe: Checked, with a seed.
        compare: Whether each picture is made without its techniques too.
        maps: How attention maps are kept.
    """

    recipe: Recipe
    compare: bool = False
    maps: Maps = "by step"

    @property
    def model(self) -> str:
        """Model that it needs."""
        return self.recipe.model

    def carry_out(self, job: Job, pipe: Any, preview: LatentPreview | None) -> None:
        """Make the pictures, telling the job of every step.

        Raises:
            AttnctlError: the recipe does not fit the model.
            Stopped: the visitor has stopped the job.
        """
        _refuse_clips(pipe)
        recipe = resolve(self.recipe, pipe)
        check(pipe, recipe)
        job.check()
        shots = jobs_of(recipe)
        compare = self.compare and bool(recipe.techniques)
        job.plan((recipe.steps or 1) * len(shots) * (2 if compare else 1))
        maps = None if self.maps == "off" else HeatMaps(keep_steps=self.maps == "by step")
        plain_recipe = recipe.changed(techniques=[])
        for number, shot in enumerate(shots, 1):
            name = f"picture {number} of {len(shots)}, seed {shot.seed}"
            steered = _one(pipe, recipe, shot, job, preview, name, maps)
            plain = None
            if compare:
                name += ", without techniques"
                plain = _one(pipe, plain_recipe, shot, job, preview, name, None)
            job.add(Pair(steered, plain))


def _one(
    pipe: Any,
    recipe: Recipe,
    shot: Shot,
    job: Job,
    preview: LatentPreview | None,
    name: str,
    maps: HeatMaps | None,
) -> Any:
    """Draw one picture, telling the job of every step."""
    job.make(name)
    on_latents: Callable[[Any], None] | None = None
    if preview is not None:
        on_latents = lambda latents: job.show(preview.picture(latents))  # noqa: E731
    on_step = Steps(job, recipe)
    made = draw(pipe, recipe, jobs=[shot], maps=maps, on_step=on_step, on_latents=on_latents)
    return next(made)


def _refuse_clips(pipe: Any) -> None:
    """Refuse a pipeline whose results are clips."""
    if "num_frames" in inspect.signature(pipe.__call__).parameters:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} makes clips; use it in the tab “Video”, from words alone"
        )


class Steps:
    """Counts the steps of one picture or clip, and knows who acts in each."""

    def __init__(self, job: Job, recipe: Recipe) -> None:
        self._job = job
        self._total = recipe.steps
        self._techniques = recipe.build_techniques()
        self._index = 0

    def __call__(self, pictures: int) -> None:
        """Count a step of all pictures that are made together."""
        acting = [t.name for t in self._techniques if t.strength_at(self._index, self._total)]
        self._index += 1
        self._job.step(tuple(acting))
