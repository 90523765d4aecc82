"""Pictures from a recipe with any text-to-image pipeline, one generator for each picture."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from attnctl.errors import SettingError
from attnctl.imaging import run_record
from attnctl.recipes import MAX_SEED, Recipe

from .fitting import pipeline_arguments, refuse_clips, using_scheduler

if TYPE_CHECKING:
    from attnctl import HeatMaps
    from attnctl.maps import AttentionMaps

OnStep = Callable[[int], None]
"""Called after each denoising step with the number of pictures that it moved on."""

OnLatents = Callable[[torch.Tensor], None]
"""Called after each denoising step with the latents ``(pictures, ...)``, not to be changed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that was made.

    Attributes:
        image: The picture.
        recipe: The recipe of this one picture, every choice filled in.
        record: What belongs into its metadata.
        seconds: Share of the batch's time.
        heat: Where each word looked: ``(H, W)`` in [0, 1].
        report: What the techniques did, as plain values; ``None`` without techniques.
        summary: The same as a table.
        maps: Every attention map, if they were asked for; this picture is item ``item``.
        item: Number of the picture in its batch.
    """

    image: Image.Image
    recipe: Recipe
    record: dict[str, Any]
    seconds: float
    heat: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    report: dict[str, Any] | None = None
    summary: str = ""
    maps: AttentionMaps | None = None
    item: int = 0


def jobs_of(recipe: Recipe) -> list[Job]:
    """List the pictures of a recipe; picture ``i`` has the seed ``seed + i``."""
    if recipe.seed is None:
        raise SettingError("the recipe has no seed; choose one first")
    prompts = [prompt for prompt in recipe.prompts for _ in range(recipe.count)]
    if recipe.seed + len(prompts) - 1 > MAX_SEED:
        raise SettingError(f"seed {recipe.seed} is too large for {len(prompts)} pictures")
    return [Job(prompt, recipe.seed + i) for i, prompt in enumerate(prompts)]


def draw(
    pipe: Any,
    recipe: Recipe,
    *,
    words: Sequence[str] = (),
    batch_size: int = 1,
    kernel: str = "auto",
    jobs: Sequence[Job] | None = None,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
    maps: HeatMaps | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Picture]:
    """Make the pictures of a recipe, batch by batch.

    The techniques are attached for each batch and detached before its pictures are handed out, so
    that the pipeline can do other work in between.

    Args:
        pipe: A text-to-image pipeline.
        recipe: With every choice filled in (:func:`attnctl.pipelines.fitting.resolve`).
        words: Words whose heat maps are kept.
        batch_size: Pictures made together.
        kernel: Attention kernel for the techniques.
        jobs: Pictures to make instead of those of the recipe.
        on_step: Called after each denoising step.
        on_latents: The same, with the latents; for a preview.
        maps: Attached beside the recipe's techniques, but no part of it; every picture is handed
            out with its maps.
        options: More arguments of the pipeline's call, which a recipe does not know.

    Raises:
        UnsupportedModelError: the pipeline makes clips.
    """
    refuse_clips(pipe)
    todo = list(jobs if jobs is not None else jobs_of(recipe))
    watch = _Watch(tuple(words), maps, on_step, on_latents)
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        yield from _draw_batch(pipe, recipe, batch, watch, kernel, options or {})


@dataclass(frozen=True, slots=True)
class _Watch:
    """What is wanted of a run beside its pictures."""

    words: tuple[str, ...]
    maps: HeatMaps | None
    on_step: OnStep | None
    on_latents: OnLatents | None


@dataclass(slots=True)
class _Made:
    """What one call of the pipeline gave; lists have one entry for each job."""

    images: list[Image.Image]
    heat: list[dict[str, np.ndarray]]
    report: dict[str, Any] | None = None
    summary: str = ""
    maps: AttentionMaps | None = None


def _draw_batch(
    pipe: Any,
    recipe: Recipe,
    jobs: Sequence[Job],
    watch: _Watch,
    kernel: str,
    options: Mapping[str, Any],
) -> list[Picture]:
    techniques = recipe.build_techniques()
    started = time.perf_counter()
    with using_scheduler(pipe, recipe.scheduler):
        arguments = {**_batch_arguments(pipe, recipe, jobs, watch), **options}
        made = _call(pipe, arguments, techniques, watch, kernel)
        record = run_record(pipe, techniques, kernel)
        if options:
            record["run"]["options"] = dict(options)
    seconds = (time.perf_counter() - started) / len(jobs)
    return [_picture(made, recipe, jobs, i, record, seconds) for i in range(len(made.images))]


def _call(
    pipe: Any,
    arguments: dict[str, Any],
    techniques: Sequence[Any],
    watch: _Watch,
    kernel: str,
) -> _Made:
    import attnctl

    attached = list(techniques)
    if not any(technique.name == "heat-maps" for technique in techniques):
        if watch.maps is not None:
            attached.append(watch.maps)
        elif watch.words:
            attached.append(attnctl.HeatMaps(words=watch.words))
    items = range(len(arguments["prompt"]))
    if not attached:
        return _Made(pipe(**arguments).images, [{} for _ in items])
    with attnctl.attach(pipe, attached, kernel=kernel) as session:
        images = pipe(**arguments).images
        report = session.report()
        heat = [{word: _map(session, word, item) for word in watch.words} for item in items]
        maps = None if watch.maps is None else session.maps
        return _Made(images, heat, report.to_dict(), report.table(), maps)


def _batch_arguments(
    pipe: Any, recipe: Recipe, jobs: Sequence[Job], watch: _Watch
) -> dict[str, Any]:
    arguments = pipeline_arguments(pipe, recipe)
    arguments["prompt"] = [job.prompt for job in jobs]
    arguments["generator"] = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(jobs)
    known = inspect.signature(pipe.__call__).parameters
    is_watched = watch.on_step is not None or watch.on_latents is not None
    if is_watched and "callback_on_step_end" in known:
        arguments["callback_on_step_end"] = _step_callback(watch, len(jobs))
    return arguments


def _picture(
    made: _Made,
    recipe: Recipe,
    jobs: Sequence[Job],
    index: int,
    record: dict[str, Any],
    seconds: float,
) -> Picture:
    job, image = jobs[index], made.images[index]
    single = recipe.changed(
        prompt=job.prompt, seed=job.seed, count=1, size=f"{image.width}x{image.height}"
    )
    run = dict(record["run"])
    if len(jobs) > 1:  # sums may round otherwise in another batch: keep its make-up
        together = [{"prompt": other.prompt, "seed": other.seed} for other in jobs]
        run["batch"] = {"jobs": together, "index": index}
    named = {"prompt": job.prompt, "model": recipe.model, "seed": job.seed}
    full = {"recipe": single.to_dict(), **named, **record, "run": run}
    return Picture(
        image, single, full, seconds, made.heat[index], made.report, made.summary, made.maps, index
    )


def _map(session: Any, word: str, item: int) -> np.ndarray:
    return session.maps.word(word, item=item).float().cpu().numpy()


def _step_callback(watch: _Watch, count: int) -> Callable[..., dict[str, Any]]:
    def after_step(
        _pipe: Any, _index: int, _timestep: Any, values: dict[str, Any]
    ) -> dict[str, Any]:
        if watch.on_latents is not None and "latents" in values:
            watch.on_latents(values["latents"].detach())
        if watch.on_step is not None:
            watch.on_step(count)
        return values

    return after_step
