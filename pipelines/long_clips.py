"""Long clips of several prompts from a recipe, one generator for each clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import torch

from attnctl.errors import SettingError
from attnctl.recipes import Recipe
from attnctl.techniques.ditctrl import DiTCtrl

from .fitting import pipeline_arguments, using_scheduler
from .long_video import make_long_video
from .text_to_image import jobs_of
from .text_to_video import MadeVideo, OnStep, made_video, usual_rate
from .tiling import Tiling


def draw_long_videos(
    pipe: Any,
    recipe: Recipe,
    then: Sequence[str],
    *,
    tiling: Tiling | None = None,
    sharing: bool = True,
    frames: int | None = None,
    rate: Fraction | None = None,
    kernel: str = "auto",
    pairs_at_once: int | None = None,
    on_step: OnStep | None = None,
) -> Iterator[MadeVideo]:
    """Make the long clips of a recipe, one after the other; clip ``i`` has the seed ``seed + i``.

    Args:
        pipe: A pipeline that makes long clips.
        recipe: With every choice filled in; its prompt is the first one.
        then: Further prompts, in order.
        tiling: How tiles overlap.
        sharing: Add ``DiTCtrl()`` if the recipe has none.
        frames: Frames of a tile; those of the recipe, or the pipeline's default otherwise.
        rate: Frames a second; what the model was trained for otherwise.
        kernel: Attention kernel for the techniques.
        pairs_at_once: Pairs in one forward of the denoiser, for less memory; ``None``: all.
        on_step: Is told 1 after each denoising step; may raise to stop.

    Raises:
        UnsupportedModelError: the pipeline makes no long clips.
        SettingError: the recipe has several prompts, or a setting cannot be used.
    """
    if not isinstance(recipe.prompt, str):
        raise SettingError(
            f"the recipe has {len(recipe.prompts)} prompts, each for a clip of its own; a long clip"
            " begins with one prompt, and goes on with those of --then"
        )
    tiling = tiling or Tiling()
    techniques = recipe.build_techniques()
    if sharing and not any(isinstance(technique, DiTCtrl) for technique in techniques):
        techniques = [*techniques, DiTCtrl()]
    for job in jobs_of(recipe):
        options = pipeline_arguments(pipe, recipe)
        own = options.pop("num_frames", None)
        with using_scheduler(pipe, recipe.scheduler):
            made = make_long_video(
                pipe,
                [job.prompt, *then],
                tiling=tiling,
                frames=frames or own,
                techniques=techniques,
                generator=torch.Generator("cpu").manual_seed(job.seed),
                kernel=kernel,
                pairs_at_once=pairs_at_once,
                on_step=on_step,
                **options,
            )
            more = {"then": list(then), "tile_frames": made.plan.tile_frames, **asdict(tiling)}
            clip = made_video(pipe, recipe, job, made.frames, rate or usual_rate(pipe), techniques,
                              made.report)  # fmt: skip
        clip.record["long_video"] = more
        yield clip
