"""Pictures from a recipe with any text-to-image pipeline, one generator for each picture."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from attnctl.errors import SettingError, nearest
from attnctl.imaging import scheduler_record
from attnctl.recipes import MAX_SEED, Recipe

OnStep = Callable[[int], None]
"""Called after each denoising step with the number of pictures that it moved on."""

_BUNDLED_DEFAULTS = {"steps": 25, "guidance": 5.0}
_PIPELINE_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
_WORD_PARAMETERS = ("subjects", "words")


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
    """

    image: Image.Image
    recipe: Recipe
    record: dict[str, Any]
    seconds: float
    heat: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    report: dict[str, Any] | None = None


def jobs_of(recipe: Recipe) -> list[Job]:
    """List the pictures of a recipe; picture ``i`` has the seed ``seed + i``."""
    if recipe.seed is None:
        raise SettingError("the recipe has no seed; choose one first")
    prompts = [prompt for prompt in recipe.prompts for _ in range(recipe.count)]
    if recipe.seed + len(prompts) - 1 > MAX_SEED:
        raise SettingError(f"seed {recipe.seed} is too large for {len(prompts)} pictures")
    return [Job(prompt, recipe.seed + i) for i, prompt in enumerate(prompts)]


def resolve(recipe: Recipe, pipe: Any) -> Recipe:
    """Fill in what the recipe leaves to the pipeline: steps, guidance, scheduler."""
    parameters = inspect.signature(pipe.__call__).parameters
    filled: dict[str, Any] = {}
    for name, parameter in _PIPELINE_NAMES.items():
        if getattr(recipe, name) is not None or parameter not in parameters:
            continue
        default = parameters[parameter].default
        if recipe.model.startswith("shapes"):
            default = _BUNDLED_DEFAULTS[name]
        if isinstance(default, int | float):
            filled[name] = default
    if recipe.scheduler is None:
        filled["scheduler"] = type(pipe.scheduler).__name__
    return recipe.changed(**filled)


def check(pipe: Any, recipe: Recipe, words: Sequence[str] = ()) -> None:
    """Check against the pipeline what can be checked without a run.

    Raises:
        SettingError: the pipeline takes no such setting, the size does not fit, the scheduler is
            unknown, or a word that is asked for is not in a prompt.
        AttnctlError: the techniques do not fit the model.
    """
    import attnctl

    _arguments(pipe, recipe)
    _check_size(pipe, recipe)
    techniques = recipe.build_techniques()
    asked = [*words, *(w for technique in techniques for w in _words_of(technique))]
    for prompt in recipe.prompts:
        for word in asked:
            attnctl.locate_tokens(pipe, prompt, word)
    with _scheduler(pipe, recipe.scheduler):
        if techniques:
            attnctl.attach(pipe, techniques).detach()


def draw(
    pipe: Any,
    recipe: Recipe,
    *,
    words: Sequence[str] = (),
    batch_size: int = 1,
    kernel: str = "auto",
    jobs: Sequence[Job] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Picture]:
    """Make the pictures of a recipe, batch by batch.

    The techniques are attached for each batch and detached before its pictures are handed out, so
    that the pipeline can do other work in between.

    Args:
        pipe: A text-to-image pipeline.
        recipe: With every choice filled in (:func:`resolve`).
        words: Words whose heat maps are kept.
        batch_size: Pictures made together.
        kernel: Attention kernel for the techniques.
        jobs: Pictures to make instead of those of the recipe.
        on_step: Called after each denoising step.
    """
    todo = list(jobs if jobs is not None else jobs_of(recipe))
    for start in range(0, len(todo), batch_size):
        yield from _draw_batch(
            pipe, recipe, todo[start : start + batch_size], words, kernel, on_step
        )


def _draw_batch(
    pipe: Any,
    recipe: Recipe,
    jobs: Sequence[Job],
    words: Sequence[str],
    kernel: str,
    on_step: OnStep | None,
) -> list[Picture]:
    import attnctl

    techniques = recipe.build_techniques()
    extra = [attnctl.HeatMaps(words=tuple(words))] if words else []
    arguments = _arguments(pipe, recipe)
    arguments["prompt"] = [job.prompt for job in jobs]
    arguments["generator"] = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(jobs)
    if (
        on_step is not None
        and "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
    ):
        arguments["callback_on_step_end"] = _step_callback(on_step, len(jobs))
    started = time.perf_counter()
    report: dict[str, Any] | None = None
    heat: list[dict[str, np.ndarray]] = [{} for _ in jobs]
    with _scheduler(pipe, recipe.scheduler):
        if techniques or extra:
            with attnctl.attach(pipe, [*techniques, *extra], kernel=kernel) as session:
                images = pipe(**arguments).images
                report = session.report().to_dict()
                heat = [{w: _map(session, w, item) for w in words} for item in range(len(jobs))]
        else:
            images = pipe(**arguments).images
        record = _shared_record(pipe, techniques, kernel)
    seconds = (time.perf_counter() - started) / len(jobs)
    return [
        _picture(image, recipe, jobs, i, record, seconds, heat[i], report)
        for i, image in enumerate(images)
    ]


def _picture(
    image: Image.Image,
    recipe: Recipe,
    jobs: Sequence[Job],
    index: int,
    record: dict[str, Any],
    seconds: float,
    heat: dict[str, np.ndarray],
    report: dict[str, Any] | None,
) -> Picture:
    job = jobs[index]
    single = recipe.changed(
        prompt=job.prompt, seed=job.seed, count=1, size=f"{image.width}x{image.height}"
    )
    run = dict(record["run"])
    if len(jobs) > 1:  # sums may round otherwise in another batch: keep its make-up
        together = [{"prompt": other.prompt, "seed": other.seed} for other in jobs]
        run["batch"] = {"jobs": together, "index": index}
    named = {"prompt": job.prompt, "model": recipe.model, "seed": job.seed}
    full = {"recipe": single.to_dict(), **named, **record, "run": run}
    return Picture(image, single, full, seconds, heat, report)


def _shared_record(pipe: Any, techniques: Sequence[Any], kernel: str) -> dict[str, Any]:
    return {
        "pipeline": type(pipe).__name__,
        "scheduler": scheduler_record(pipe.scheduler),
        "techniques": [{"name": t.name, "settings": t.settings()} for t in techniques],
        "run": {
            "device": str(getattr(pipe, "_execution_device", pipe.device)),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "kernel": kernel,
        },
    }


def _arguments(pipe: Any, recipe: Recipe) -> dict[str, Any]:
    """Collect the arguments of the pipeline's call, without prompts and generators."""
    width, height = recipe.size_px or (None, None)
    wanted = {
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance,
        "negative_prompt": recipe.negative,
        "width": width,
        "height": height,
    }
    known = inspect.signature(pipe.__call__).parameters
    given = {name: value for name, value in wanted.items() if value is not None}
    for name in given:
        if name not in known:
            raise SettingError(f"{type(pipe).__name__} takes no {name}; leave it out")
    return given


def _check_size(pipe: Any, recipe: Recipe) -> None:
    if recipe.size_px is None:
        return
    factor = size_factor(pipe)
    width, height = recipe.size_px
    if width % factor or height % factor:
        near = "x".join(str(max(factor, round(n / factor) * factor)) for n in (width, height))
        raise SettingError(
            f"size {recipe.size}: width and height must be multiples of {factor} for"
            f" {recipe.model!r}; nearest: {near}"
        )


def size_factor(pipe: Any) -> int:
    """Number of pixels that width and height must be multiples of."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    if getattr(pipe, "unet", None) is not None:
        return max(8, scale)
    patch = getattr(getattr(pipe.transformer, "config", {}), "patch_size", 2)
    side = patch[-1] if isinstance(patch, list | tuple) else patch
    return scale * max(2, int(side or 1))


def _words_of(technique: Any) -> list[str]:
    values = [getattr(technique, name, None) for name in _WORD_PARAMETERS]
    lists = [[value] if isinstance(value, str) else value for value in values]
    return [w for v in lists if isinstance(v, list | tuple) for w in v if isinstance(w, str)]


@contextmanager
def _scheduler(pipe: Any, name: str | None) -> Generator[None]:
    """Let the pipeline use another scheduler for the length of a block."""
    before = pipe.scheduler
    if name is None or name == type(before).__name__:
        yield
        return
    pipe.scheduler = _find_scheduler(name).from_config(before.config)
    try:
        yield
    finally:
        pipe.scheduler = before


def _find_scheduler(name: str) -> Any:
    import diffusers

    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    if name not in known:
        raise SettingError(f"unknown scheduler {name!r}; {nearest(name, known)}")
    return getattr(diffusers, name)


def _map(session: Any, word: str, item: int) -> np.ndarray:
    return session.maps.word(word, item=item).float().cpu().numpy()


def _step_callback(on_step: OnStep, count: int) -> Callable[..., dict[str, Any]]:
    def after_step(
        _pipe: Any, _index: int, _timestep: Any, values: dict[str, Any]
    ) -> dict[str, Any]:
        on_step(count)
        return values

    return after_step
