"""Long clips of several prompts (DiTCtrl): tiles that overlap, and share keys and values."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnctl.engine.apart import items_apart
from attnctl.errors import SettingError
from attnctl.inversion.hosts import family_of, find_denoiser
from attnctl.ops.ditctrl import blend_prompts, cut_tiles
from attnctl.sites import model_config
from attnctl.technique import Technique
from attnctl.techniques.ditctrl import DiTCtrl
from attnctl.windows import is_whole

from .text_to_video import OnStep
from .tiled_steps import TiledSteps
from .tiling import LongPlan, Tiling, plan_long_video

_OURS = (
    "prompt", "prompt_embeds", "negative_prompt_embeds", "latents", "num_frames", "generator",
    "callback_on_step_end", "num_videos_per_prompt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LongVideo:
    """A long clip that was made.

    Attributes:
        frames: As the pipeline gives one clip, by ``output_type``: an array ``(F, H, W, 3)`` in
            [0, 1] by default; latents ``(F, C, h, w)`` or ``(C, F, h, w)``.
        plan: Its tiles.
        report: What the techniques did; ``None`` without techniques.
    """

    frames: Any
    plan: LongPlan
    report: Any = field(default=None, repr=False)


def make_long_video(
    pipe: Any,
    prompts: Sequence[str],
    *,
    tiling: Tiling | None = None,
    frames: int | None = None,
    techniques: Sequence[Technique] | None = None,
    generator: torch.Generator | None = None,
    kernel: str = "auto",
    pairs_at_once: int | None = None,
    output_type: str = "np",
    on_step: OnStep | None = None,
    **options: Any,
) -> LongVideo:
    """Make one clip that goes from prompt to prompt.

    Tiles of the clip overlap, each with its own prompt or a blend of two. At every step all pairs
    of neighbours run in one batch, the later tile of a pair reads keys and values of the earlier
    one (``DiTCtrl``), what is predicted is blended, and the scheduler makes one step of the whole
    clip. The pipeline's own loop does it, so guidance and scheduler are the pipeline's. A batch has
    twice as many clips as there are pairs; tiles in the middle count twice.

    With one prompt there is no pair: the pipeline makes its clip as always.

    Args:
        pipe: One of :data:`PIPELINES`.
        prompts: In order, one or more.
        tiling: How tiles overlap.
        frames: Frames of a tile; what the pipeline makes by default otherwise.
        techniques: Attached while the clip is made; each sees tiles as the items of a batch. A
            ``DiTCtrl`` among them is given the pairs. ``None``: ``DiTCtrl()``; ``()``: no sharing.
        generator: Of the noise, and of a scheduler that draws some.
        kernel: Attention kernel for the techniques.
        pairs_at_once: Pairs in one forward of the denoiser, from 1, for less memory; ``None``: all.
        output_type: Of the pipeline: ``np``, ``pil``, ``pt`` or ``latent``.
        on_step: Is told 1 after each denoising step; may raise to stop.
        options: Further arguments of the pipeline's call.

    Raises:
        UnsupportedModelError: the pipeline makes no long clips, or a technique needs all pairs at
            once.
        SettingError: a setting cannot be used; said before anything is computed.
        AlreadyAttachedError: techniques are attached to the pipeline already.
    """
    texts = _check_prompts(prompts)
    _check_options(options)
    plan = plan_long_video(pipe, len(texts), tiling, frames)
    groups = _groups(plan, pairs_at_once)
    chosen = [DiTCtrl()] if techniques is None else list(techniques)
    call: dict[str, Any] = {**options, "num_frames": plan.tile_frames, "output_type": output_type}
    if len(plan.tiles) == 1:
        others = [technique for technique in chosen if not isinstance(technique, DiTCtrl)]
        call |= {"prompt": texts[0], "generator": generator}
        return _run(pipe, call | _callback(None, on_step), plan, others, kernel, ())
    chosen = [_paired(pipe, technique, texts, plan) for technique in chosen]
    axis = 3 - family_of(pipe).channels_axis
    long = _noise(pipe, plan, options, generator, axis)
    starts = [plan.starts[tile] for tile in plan.items]
    steps = TiledSteps(pipe.scheduler, starts, plan.length, axis)
    call |= _embeddings(pipe, texts, plan, options)
    call |= {"latents": cut_tiles(long, starts, plan.length, axis), "generator": generator}
    call.pop("negative_prompt", None)
    with steps.installed():
        return _run(pipe, call | _callback(steps, on_step), plan, chosen, kernel, groups)


def _run(
    pipe: Any,
    call: Mapping[str, Any],
    plan: LongPlan,
    techniques: Sequence[Technique],
    kernel: str,
    groups: Sequence[Sequence[int]],
) -> LongVideo:
    import attnctl

    attached = attnctl.attach(pipe, list(techniques), kernel=kernel) if techniques else None
    with attached or nullcontext(), items_apart(pipe, groups) if groups else nullcontext():
        output = pipe(**call)
        report = None if attached is None else attached.report()
    return LongVideo(output.frames[0], plan, report)


def _groups(plan: LongPlan, pairs: int | None) -> list[tuple[int, ...]]:
    """Items of the batch that run together; empty if all of them do.

    Raises:
        SettingError: ``pairs`` is no whole number from 1.
    """
    if pairs is None:
        return []
    if not is_whole(pairs) or pairs < 1:
        raise SettingError(f"pairs_at_once={pairs!r} must be a whole number from 1, or None: all")
    count, size = len(plan.items), 2 * pairs
    return [tuple(range(at, min(at + size, count))) for at in range(0, count, size)]


def _callback(steps: TiledSteps | None, on_step: OnStep | None) -> dict[str, Any]:
    """What the pipeline calls after each step; after the last one it is given the long clip."""

    def after_step(pipe: Any, index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            on_step(1)
        if steps is not None and index == pipe.num_timesteps - 1:
            return {**values, "latents": steps.take_over(values["latents"])}
        return values

    return {"callback_on_step_end": after_step}


def _paired(pipe: Any, technique: Technique, texts: Sequence[str], plan: LongPlan) -> Technique:
    """Give ``DiTCtrl`` its pairs, and token positions in place of words: tiles have no prompt."""
    import attnctl

    if not isinstance(technique, DiTCtrl):
        return technique
    count = len(plan.items)
    words: Any = technique.mask_words
    if words and not isinstance(words[0], tuple):
        found = [
            [
                at
                for word in words
                for at in (
                    attnctl.locate_tokens(pipe, text, word)[0].positions
                    if isinstance(word, str)
                    else (word,)
                )
            ]
            for text in texts
        ]
        # A blend is read with the words of the nearer prompt.
        nearer = [round(k + w) for k, w in plan.tiles]
        words = [found[nearer[tile]] for tile in plan.items]
    evens, odds = tuple(range(0, count, 2)), tuple(range(1, count, 2))
    return replace(technique, source=evens, target=odds, mask_words=words)


def _embeddings(
    pipe: Any, texts: Sequence[str], plan: LongPlan, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Text embeddings of the batch; those of the negative prompt are the same for all tiles."""
    known = inspect.signature(pipe.encode_prompt).parameters
    defaults = inspect.signature(pipe.__call__).parameters
    scale = options.get("guidance_scale", defaults["guidance_scale"].default)
    arguments: dict[str, Any] = {
        name: options.get(name, defaults[name].default)
        for name in ("max_sequence_length", "clip_skip")
        if name in known and name in defaults
    }
    count = "num_videos_per_prompt" if "num_videos_per_prompt" in known else "num_images_per_prompt"
    with torch.no_grad():
        embeddings, negative = pipe.encode_prompt(
            prompt=list(texts),
            negative_prompt=[options.get("negative_prompt") or ""] * len(texts),
            do_classifier_free_guidance=scale > 1,
            device=getattr(pipe, "_execution_device", pipe.device),
            **{count: 1},
            **arguments,
        )
    items = [plan.tiles[tile] for tile in plan.items]
    found = {"prompt_embeds": blend_prompts(embeddings, items)}
    if negative is not None:
        found["negative_prompt_embeds"] = negative[:1].repeat(len(items), 1, 1)
    return found


def _noise(
    pipe: Any,
    plan: LongPlan,
    options: Mapping[str, Any],
    generator: torch.Generator | None,
    axis: int,
) -> Tensor:
    """Noise of the whole clip, frames on ``axis``, in the dtype of the pipeline's latents."""
    from diffusers.utils.torch_utils import randn_tensor

    denoiser = find_denoiser(pipe)
    config, defaults = model_config(denoiser), inspect.signature(pipe.__call__).parameters
    factor = int(getattr(pipe, "vae_scale_factor_spatial", 0) or pipe.vae_scale_factor)
    patch = config.get("patch_size") or 1
    patch = int(patch[-1] if isinstance(patch, list | tuple) else patch)
    sides: list[int] = []
    for name in ("height", "width"):
        side = options.get(name) or defaults[name].default
        own = config.get(f"sample_{name}") or config.get("sample_size")
        side = int(side) if side else int(own) * factor
        if side % (factor * patch):
            raise SettingError(f"{name}={side} must be a multiple of {factor * patch} pixels")
        sides.append(side // factor)
    shape = [1, int(config["in_channels"]), *sides]
    shape.insert(axis, plan.latent_frames)
    is_wan = type(pipe).__name__ == "WanPipeline"
    dtype = torch.float32 if is_wan else denoiser.dtype
    device = getattr(pipe, "_execution_device", pipe.device)
    return randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)


def _check_prompts(prompts: Sequence[str]) -> list[str]:
    texts: list[Any] = [] if isinstance(prompts, str) else list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise SettingError(
            f"prompts={prompts!r} must be one or more prompts in order, such as ['a cat walks', "
            "'a cat sits']"
        )
    return texts


def _check_options(options: Mapping[str, Any]) -> None:
    given = [name for name in options if name in _OURS]
    if given:
        raise SettingError(
            f"make_long_video sets {', '.join(given)} itself; leave it out (prompts=, frames= and "
            "generator= are its own)"
        )
