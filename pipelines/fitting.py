"""Fit a recipe to a pipeline: fill in its choices, and check what can be checked without a run."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from attnctl.engine.targets import name_of
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.recipes import Recipe

_BUNDLED_DEFAULTS = {"steps": 25, "guidance": 5.0}
_PIPELINE_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
_WORD_PARAMETERS = ("subjects", "words")


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

    pipeline_arguments(pipe, recipe)
    _check_size(pipe, recipe)
    techniques = recipe.build_techniques()
    asked = [*words, *(w for technique in techniques for w in words_of(technique))]
    for prompt in recipe.prompts:
        for word in asked:
            attnctl.locate_tokens(pipe, prompt, word)
    with using_scheduler(pipe, recipe.scheduler):
        if techniques:
            attnctl.attach(pipe, techniques).detach()


def refuse_clips(pipe: Any) -> None:
    """Refuse a pipeline that makes clips where pictures are wanted.

    Raises:
        UnsupportedModelError: its call takes a number of frames.
    """
    if "num_frames" in inspect.signature(pipe.__call__).parameters:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} makes clips, not pictures; make them with `attnctl video` or"
            " attnctl.pipelines.text_to_video.draw_videos, or take a model of pictures"
        )


def pipeline_arguments(pipe: Any, recipe: Recipe) -> dict[str, Any]:
    """Collect the arguments of the pipeline's call, without prompts and generators."""
    width, height = recipe.size_px or (None, None)
    wanted = {
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance,
        "negative_prompt": recipe.negative,
        "width": width,
        "height": height,
        "num_frames": recipe.frames,
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


def default_guidance(pipe: Any) -> float:
    """The pipeline's usual guidance scale; 1 if it has none."""
    if name_of(pipe).startswith("shapes"):
        return _BUNDLED_DEFAULTS["guidance"]
    parameters = inspect.signature(pipe.__call__).parameters
    default = parameters["guidance_scale"].default if "guidance_scale" in parameters else 1.0
    return float(default) if isinstance(default, int | float) else 1.0


def size_factor(pipe: Any) -> int:
    """Number of pixels that width and height must be multiples of."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    if getattr(pipe, "unet", None) is not None:
        return max(8, scale)
    patch = getattr(getattr(pipe.transformer, "config", {}), "patch_size", 2)
    side = patch[-1] if isinstance(patch, list | tuple) else patch
    return scale * max(2, int(side or 1))


def words_of(technique: Any) -> list[str]:
    """Words of the prompt that a technique is told to look for."""
    values = [getattr(technique, name, None) for name in _WORD_PARAMETERS]
    lists = [[value] if isinstance(value, str) else value for value in values]
    return [w for v in lists if isinstance(v, list | tuple) for w in v if isinstance(w, str)]


@contextmanager
def using_scheduler(pipe: Any, name: str | None) -> Generator[None]:
    """Let the pipeline use another scheduler for the length of a block."""
    before = pipe.scheduler
    if name is None or name == type(before).__name__:
        yield
        return
    pipe.scheduler = find_scheduler(name).from_config(before.config)
    try:
        yield
    finally:
        pipe.scheduler = before


def find_scheduler(name: str) -> Any:
    """Find a scheduler class of diffusers.

    Raises:
        SettingError: there is none of that name; the message has the nearest ones.
    """
    import diffusers

    known = [n for n in dir(diffusers) if n.endswith("Scheduler") and not n.startswith("Flax")]
    if name not in known:
        raise SettingError(f"unknown scheduler {name!r}; {nearest(name, known)}")
    return getattr(diffusers, name)
