"""Clips from a recipe with any text-to-video pipeline, one generator for each clip."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.imaging import run_record
from attnctl.recipes import Recipe
from attnctl.technique import Technique
from attnctl.video import Video

from .fitting import pipeline_arguments, using_scheduler
from .text_to_image import Job, jobs_of

OnStep = Callable[[int], None]

RATES = {"AnimateDiff": 8, "CogVideoX": 8, "Wan": 16, "HunyuanVideo": 15, "LTX": 24, "Mochi": 30}
"""Frames a second that models were trained for, by the beginning of their pipelines' names."""

USUAL_RATE = 8


@dataclass(frozen=True, slots=True)
class MadeVideo:
    """One clip that was made.

    Attributes:
        video: The clip.
        recipe: The recipe of this one clip, every choice filled in.
        record: What belongs into its metadata.
        report: What the techniques did; ``None`` without techniques.
    """

    video: Video
    recipe: Recipe
    record: dict[str, Any]
    report: Any = field(default=None, repr=False)


def check_video_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that makes no videos from words alone.

    Raises:
        UnsupportedModelError: it makes pictures, or needs a picture or a video to begin with.
    """
    parameters = inspect.signature(pipe.__call__).parameters
    name = type(pipe).__name__
    if "num_frames" not in parameters:
        raise UnsupportedModelError(
            f"{name} makes pictures, not videos; give a text-to-video pipeline (AnimateDiff,"
            " CogVideoX, Wan, HunyuanVideo, LTX, Mochi), or edit a clip with `attnctl video-edit`"
        )
    needed = [
        n
        for n in ("image", "video")
        if n in parameters and parameters[n].default is inspect.Parameter.empty
    ]
    if needed:
        raise UnsupportedModelError(
            f"{name} begins with {' and '.join(needed)}; give a pipeline that begins with words"
        )


def draw_videos(
    pipe: Any,
    recipe: Recipe,
    *,
    frames: int | None = None,
    rate: Fraction | None = None,
    kernel: str = "auto",
    on_step: OnStep | None = None,
) -> Iterator[MadeVideo]:
    """Make the clips of a recipe, one after the other; clip ``i`` has the seed ``seed + i``.

    Args:
        pipe: A text-to-video pipeline.
        recipe: With every choice filled in.
        frames: Frames of a clip; the pipeline's default otherwise.
        rate: Frames a second; what the model was trained for otherwise.
        kernel: Attention kernel for the techniques.
        on_step: Is told 1 after each denoising step; may raise to stop.

    Raises:
        UnsupportedModelError: the pipeline makes no videos.
        SettingError: it cannot make so many frames.
    """
    check_video_pipeline(pipe)
    if frames is not None:
        check_frame_count(pipe, frames)
    for job in jobs_of(recipe):
        yield _draw(pipe, recipe, job, frames, rate or usual_rate(pipe), kernel, on_step)


def check_frame_count(pipe: Any, frames: int) -> None:
    """Refuse a number of frames that a pipeline would silently change.

    Raises:
        SettingError: frames are not one more than a multiple of the temporal compression.
    """
    factor = int(getattr(pipe, "vae_scale_factor_temporal", 1) or 1)
    if frames < 1 or (frames - 1) % factor:
        near = max(1, round((frames - 1) / factor) * factor + 1)
        raise SettingError(
            f"{frames} frames do not fit {type(pipe).__name__}, which compresses time by {factor};"
            f" take {near}"
        )


def usual_rate(pipe: Any) -> Fraction:
    """Frames a second that a pipeline's model was trained for."""
    name = type(pipe).__name__
    known = (rate for start, rate in RATES.items() if name.startswith(start))
    return Fraction(next(known, USUAL_RATE))


def _draw(
    pipe: Any,
    recipe: Recipe,
    job: Job,
    frames: int | None,
    rate: Fraction,
    kernel: str,
    on_step: OnStep | None,
) -> MadeVideo:
    import attnctl

    techniques = recipe.build_techniques()
    with using_scheduler(pipe, recipe.scheduler):
        arguments = _arguments(pipe, recipe, job, frames, on_step)
        report = None
        if techniques:
            with attnctl.attach(pipe, techniques, kernel=kernel) as session:
                output = pipe(**arguments)
                report = session.report()
        else:
            output = pipe(**arguments)
        return made_video(pipe, recipe, job, output.frames[0], rate, techniques, report)


def made_video(
    pipe: Any,
    recipe: Recipe,
    job: Job,
    frames: Any,
    rate: Fraction,
    techniques: Sequence[Technique],
    report: Any,
) -> MadeVideo:
    """Put together what is known of a clip, while its scheduler is still in the pipeline.

    Args:
        pipe: What made it.
        recipe: The recipe that it belongs to.
        job: Its prompt and seed.
        frames: ``(F, H, W, 3)`` in [0, 1].
        rate: Frames a second.
        techniques: That were attached.
        report: What they did.
    """
    values = np.asarray(frames, np.float32)
    made = Video((values.clip(0, 1) * 255).round().astype(np.uint8), rate)
    height, width = made.size
    single = recipe.changed(prompt=job.prompt, seed=job.seed, count=1, size=f"{width}x{height}")
    record = {
        "recipe": single.to_dict(),
        **run_record(pipe, techniques),
        "video": {"frames": len(made.frames), "rate": str(rate)},
    }
    return MadeVideo(made, single, record, report)


def _arguments(
    pipe: Any, recipe: Recipe, job: Job, frames: int | None, on_step: OnStep | None
) -> dict[str, Any]:
    arguments = pipeline_arguments(pipe, recipe)
    arguments |= {
        "prompt": job.prompt,
        "generator": torch.Generator("cpu").manual_seed(job.seed),
        "output_type": "np",
    }
    if frames is not None:
        arguments["num_frames"] = frames
    known = inspect.signature(pipe.__call__).parameters
    if on_step is not None and "callback_on_step_end" in known:

        def after_step(_pipe: Any, _index: int, _time: Any, values: dict[str, Any]) -> Any:
            on_step(1)
            return values

        arguments["callback_on_step_end"] = after_step
    return arguments
