"""Stock pipelines as hosts of solvers: what is supported, and one call of a pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnctl.editing.features import prediction_type
from attnctl.engine.targets import find_denoisers
from attnctl.errors import UnsupportedModelError
from attnctl.families import Family, find_family
from attnctl.inversion.driven import DrivenScheduler, Keep, OnEvaluation, Solver
from attnctl.report import Report
from attnctl.sites import model_config
from attnctl.technique import Technique

PICTURE_FAMILIES = ("UNet (SD 1.x, 2.x, SDXL)", "PixArt", "SD3 and SD3.5", "FLUX.1")
"""Families whose pictures can be encoded and decoded here; others take latents."""

Size = tuple[int, int]
"""Width and height, pixels."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a pipeline, without its latents.

    Attributes:
        prompts: One for each item.
        size: Width and height, pixels.
        steps: Steps of the sampler.
        guidance: ``guidance_scale``; 1 switches classifier-free guidance off.
        negative: What the pictures should not show.
        options: Further arguments of the pipeline; they win.
    """

    prompts: Sequence[str]
    size: Size
    steps: int
    guidance: float = 1.0
    negative: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Driven:
    """What a solver gave.

    Attributes:
        latents: Its last latents, fp32.
        evaluations: Evaluations of the denoiser, each over all items.
        report: What techniques did; ``None`` without them.
    """

    latents: Tensor
    evaluations: int
    report: Report | None


def family_of(pipe: Any) -> Family:
    """The family of a pipeline's first denoiser."""
    _, denoisers = find_denoisers(pipe)
    return find_family(next(iter(denoisers.values())))


def refuse_unsupported(pipe: Any, *, pictures: bool) -> None:
    """Refuse a pipeline that cannot be driven, before anything is computed.

    Args:
        pipe: The pipeline.
        pictures: Whether pictures, not latents, go in or come out.

    Raises:
        UnsupportedModelError: it takes no latents, its scheduler has no levels that are known, or
            its pictures are not those of a known family.
    """
    name = type(pipe).__name__
    parameters = inspect.signature(pipe.__call__).parameters
    missing = [p for p in ("prompt", "latents", "output_type") if p not in parameters]
    wants_picture = "image" in parameters and parameters["image"].default is inspect.Parameter.empty
    if missing or wants_picture or "strength" in parameters:
        raise UnsupportedModelError(
            f"{name} is no text-to-image pipeline that starts from latents; build one from its "
            "parts, such as StableDiffusionPipeline(**pipe.components)"
        )
    base = getattr(pipe, "scheduler", None)
    if prediction_type(base) != "flow" and not hasattr(base, "alphas_cumprod"):
        raise UnsupportedModelError(
            f"the levels of {type(base).__name__} are not known; set a scheduler of the DDIM or "
            "flow-matching kind (DDIMScheduler, FlowMatchEulerDiscreteScheduler)"
        )
    if pictures:
        _refuse_pictures(pipe, name)


def _refuse_pictures(pipe: Any, name: str) -> None:
    family = family_of(pipe)
    if family.name not in PICTURE_FAMILIES or not hasattr(pipe.vae.config, "scaling_factor"):
        raise UnsupportedModelError(
            f"{name} ({family.name}) cannot invert or edit pictures; families that can: "
            f"{', '.join(PICTURE_FAMILIES)}"
        )
    channels = model_config(find_denoiser(pipe)).get("in_channels")
    wanted = pipe.vae.config.latent_channels * (4 if is_packed(pipe) else 1)
    if channels != wanted:
        raise UnsupportedModelError(
            f"the denoiser of {name} takes {channels} channels, of which {wanted} are latents; "
            "inpainting and control variants of a model cannot be inverted, load the plain one"
        )


def find_denoiser(pipe: Any) -> Any:
    """The pipeline's first denoiser."""
    _, denoisers = find_denoisers(pipe)
    return next(iter(denoisers.values()))


def is_packed(pipe: Any) -> bool:
    """Whether the pipeline's latents are tokens of two by two cells."""
    return hasattr(pipe, "_pack_latents")


def sampler_of(pipe: Any) -> Any:
    """A deterministic scheduler with the pipeline's own noise levels.

    Euler steps for flow models, DDIM for diffusion models: what an inversion can follow back.
    """
    import diffusers

    base = pipe.scheduler
    base = getattr(base, "sampler", base)
    if prediction_type(base) == "flow":
        cls = diffusers.FlowMatchEulerDiscreteScheduler
        same = isinstance(base, cls)
        changes: dict[str, Any] = {"stochastic_sampling": False}
        if not same:
            shift = base.config.get("flow_shift", base.config.get("shift", 1.0))
            changes["shift"] = 1.0 if shift is None else shift
    else:
        is_ddim = type(base).__name__.endswith("DDIMScheduler")
        cls = type(base) if is_ddim else diffusers.DDIMScheduler
        changes = {"clip_sample": False, "thresholding": False}
        if not is_ddim:
            changes["set_alpha_to_one"] = bool(base.config.get("set_alpha_to_one", False))
    return cls.from_config(base.config, **changes)


@contextmanager
def scheduled(pipe: Any, scheduler: Any) -> Generator[None]:
    """Let the pipeline use another scheduler inside this block."""
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def run_pipeline(
    pipe: Any, scheduler: Any, latents: Tensor, call: Call, techniques: Sequence[Technique] = ()
) -> tuple[Tensor, Report | None]:
    """Call the pipeline once, with latents in and latents out.

    Args:
        pipe: The pipeline; its scheduler is put back afterwards.
        scheduler: What it runs with: a sampler, or a driven scheduler.
        latents: In the form that the pipeline steps, in its dtype and on its device.
        call: Prompts and settings.
        techniques: Attached for this call.

    Returns:
        The last latents, and the report of the techniques.
    """
    import attnctl

    arguments = _arguments(pipe, call) | {"latents": latents} | dict(call.options)
    with scheduled(pipe, scheduler):
        if not techniques:
            out, report = _call(pipe, arguments), None
        else:
            with attnctl.attach(pipe, list(techniques)) as session:
                out = _call(pipe, arguments)
                report = session.report()
    return out, report


def drive(
    pipe: Any,
    solver: Solver,
    start: Tensor,
    call: Call,
    techniques: Sequence[Technique] = (),
    *,
    keep: Keep = lambda level, latents: None,
    on_evaluation: OnEvaluation | None = None,
) -> Driven:
    """Let a solver run inside the pipeline.

    Args:
        pipe: The pipeline.
        solver: What runs.
        start: Where it starts, in the form that the pipeline steps.
        call: Prompts and settings.
        techniques: Attached for this call.
        keep: Is told the latents at the levels that the solver reaches.
        on_evaluation: Is told how far the run is.
    """
    latents, dtype = on_device(pipe, start), find_denoiser(pipe).dtype
    scheduler = DrivenScheduler(
        sampler_of(pipe), solver, latents, dtype, keep=keep, on_evaluation=on_evaluation
    )
    out, report = run_pipeline(pipe, scheduler, scheduler.given, call, techniques)
    result = scheduler.settled(out)
    return Driven(result, scheduler.evaluations, report)


def working_latents(pipe: Any, latents: Tensor) -> Tensor:
    """Latents in the dtype and on the device that the pipeline computes with."""
    return on_device(pipe, latents).to(find_denoiser(pipe).dtype)


def on_device(pipe: Any, latents: Tensor) -> Tensor:
    """Latents in fp32 on the device that the pipeline computes on."""
    return latents.to(getattr(pipe, "_execution_device", pipe.device), torch.float32)


def _call(pipe: Any, arguments: dict[str, Any]) -> Tensor:
    output = pipe(**arguments)
    return output.frames if hasattr(output, "frames") else output.images


def _arguments(pipe: Any, call: Call) -> dict[str, Any]:
    width, height = call.size
    wanted: dict[str, Any] = {
        "prompt": list(call.prompts),
        "num_inference_steps": call.steps,
        "guidance_scale": call.guidance,
        "width": width,
        "height": height,
        "output_type": "latent",
        "use_resolution_binning": False,
    }
    known = inspect.signature(pipe.__call__).parameters
    given = {name: value for name, value in wanted.items() if name in known}
    if call.negative is not None and "negative_prompt" in known:
        given["negative_prompt"] = [call.negative] * len(call.prompts)
    return given
