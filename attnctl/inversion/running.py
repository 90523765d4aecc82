"""The one interface of inversion: a picture or latents in, noise and trajectory out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnctl.editing.trajectories import Trajectory
from attnctl.errors import SettingError, nearest
from attnctl.inversion.driven import OnEvaluation, Solver
from attnctl.inversion.hosts import (
    Call,
    Size,
    drive,
    is_packed,
    on_device,
    refuse_unsupported,
)
from attnctl.inversion.levels import Level
from attnctl.inversion.pictures import encode, packed
from attnctl.inversion.solvers import (
    Told,
    controlled_up,
    euler_down,
    euler_up,
    fireflow,
    midpoint,
)
from attnctl.report import Report
from attnctl.settings import check_number, check_whole
from attnctl.technique import Technique

METHODS = ("auto", "ddim", "euler", "rf-solver", "fireflow", "rf-inversion")
FLOW_ONLY = ("euler", "rf-inversion")
REFINEMENTS = {"ddim": 1, "euler": 3}
"""Fixed-point iterations of each step unless somebody chooses: what it takes to lose less than
1 dB beside the decoder, on the bundled models."""

Source = Image.Image | Sequence[Image.Image] | Tensor


@dataclass(frozen=True, slots=True)
class Inversion:
    """What an inversion gave.

    Attributes:
        noise: Latents to start from, fp32, in the form that the pipeline steps.
        clean: Latents of the source, nudged if that was asked for.
        trajectory: Latents at every level of the sampler; ``None`` for RF-Inversion's faithful
            mode, whose steps do not meet those levels.
        prompts: One for each item.
        method: What inverted.
        steps: Steps of the sampler.
        guidance: Guidance scale of the inversion.
        size: Width and height, pixels.
        evaluations: Evaluations of the denoiser (NFE), each over all items.
        report: What techniques did on the way; ``None`` without them.
    """

    noise: Tensor
    clean: Tensor
    trajectory: Trajectory | None
    prompts: tuple[str, ...]
    method: str
    steps: int
    guidance: float
    size: Size
    evaluations: int
    report: Report | None = field(default=None, compare=False)


def invert(
    pipe: Any,
    source: Source,
    prompt: str | Sequence[str] | None = None,
    *,
    method: str = "auto",
    steps: int = 50,
    refinements: int | None = None,
    told: Told = "noisier",
    guidance: float = 1.0,
    nudge: float = 1.0,
    gamma: float = 0.5,
    consistent: bool = True,
    seed: int = 0,
    size: Size | None = None,
    techniques: Sequence[Technique] = (),
    offload: bool = False,
    on_evaluation: OnEvaluation | None = None,
    options: Mapping[str, Any] | None = None,
) -> Inversion:
    """Find the noise from which a pipeline makes a given picture.

    The pipeline itself runs, with a scheduler that goes upwards, so every pipeline with latents
    that its scheduler steps can be inverted; latents are kept in fp32.

    Args:
        pipe: A text-to-image (or text-to-video) pipeline; it is left as it was.
        source: RGB pictures of a size that the model takes, or latents ``(items, ...)``.
        prompt: What the source shows, one for all items or one each. ``None``: the empty prompt.
        method: ``"ddim"`` (diffusion models), ``"euler"`` or ``"rf-inversion"`` (flow models),
            ``"rf-solver"`` or ``"fireflow"`` (both), or ``"auto"``: ``ddim`` or ``euler``.
        steps: Steps of the sampler, from 1.
        refinements: Fixed-point iterations of each ``ddim`` or ``euler`` step, from 0; each costs
            one evaluation. ``None``: 1 for ``ddim``, 3 for ``euler``.
        told: Timestep of an explicit ``ddim`` or ``euler`` step: of the ``"noisier"`` level, or
            its ``"own"``.
        guidance: Guidance scale, also of FLUX's guidance embedding. More than 1 destroys the
            reconstruction; RF-Inversion's authors use 0 with FLUX.
        nudge: Factor on the source's latents; Stable Flow takes 1.15.
        gamma: RF-Inversion's pull towards random noise, in [0, 1].
        consistent: RF-Inversion with times and steps that belong together, not as diffusers'
            community pipeline has them.
        seed: Of RF-Inversion's random noise.
        size: Width and height in pixels, for latents that do not tell them (packed FLUX tokens).
        techniques: Attached while inverting, such as recorders of features.
        offload: Keep the trajectory in the memory of the CPU.
        on_evaluation: Is told how many evaluations of the denoiser are done, and of how many.
        options: Further arguments of the pipeline's call.

    Raises:
        UnsupportedModelError: the pipeline, or its family, cannot be inverted.
        SettingError: a setting cannot be used; said before anything is computed.
    """
    from attnctl.editing.features import prediction_type

    refuse_unsupported(pipe, pictures=not isinstance(source, Tensor))
    method = _method(method, prediction_type(pipe.scheduler) == "flow")
    if refinements is None:
        refinements = REFINEMENTS.get(method, 0)
    _check(steps, refinements, told, guidance, nudge, gamma, method)
    clean = packed(pipe, source) if isinstance(source, Tensor) else encode(pipe, _listed(source))
    clean = on_device(pipe, clean) * nudge
    call = Call(_prompts(prompt, len(clean)), size or _size(pipe, source), steps, guidance,
                options=options or {})  # fmt: skip
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(seed))
    kept: list[tuple[Level, Tensor]] = []
    run = drive(
        pipe,
        _solver(method, told, refinements, noise, gamma, consistent),
        clean,
        call,
        techniques,
        keep=lambda level, latents: kept.append((level, latents.clone())),
        on_evaluation=on_evaluation,
    )
    trajectory = None
    if len(kept) == steps:
        levels = [level.timestep for level, _ in kept[::-1]]
        latents = [*(x for _, x in kept[::-1]), clean]
        trajectory = Trajectory(levels, latents, offload=offload)
    return Inversion(
        run.latents, clean, trajectory, tuple(call.prompts), method, steps, guidance, call.size,
        run.evaluations, run.report,
    )  # fmt: skip


def reconstruct(
    pipe: Any, inversion: Inversion, *, on_evaluation: OnEvaluation | None = None
) -> Tensor:
    """Sample from the noise of an inversion, with its own solver, prompt and guidance.

    Returns:
        Latents, fp32; how far they are from :attr:`Inversion.clean` is the inversion's error.
    """
    down: Callable[[], Solver] = {
        "rf-solver": lambda: midpoint(up=False),
        "fireflow": lambda: fireflow(up=False),
    }.get(inversion.method, euler_down)
    call = Call(inversion.prompts, inversion.size, inversion.steps, inversion.guidance)
    return drive(pipe, down(), inversion.noise, call, on_evaluation=on_evaluation).latents


def _method(method: str, is_flow: bool) -> str:
    if method == "auto":
        return "euler" if is_flow else "ddim"
    if method not in METHODS:
        raise SettingError(f"unknown inversion method {method!r}; {nearest(method, METHODS)}")
    if method in FLOW_ONLY and not is_flow:
        raise SettingError(
            f"method {method!r} is for flow models (SD3, FLUX), and this is a diffusion model; "
            "use 'ddim', 'rf-solver' or 'fireflow'"
        )
    if method == "ddim" and is_flow:
        raise SettingError("method 'ddim' is for diffusion models, and this is a flow model; use "
                           "'euler', 'rf-solver', 'fireflow' or 'rf-inversion'")  # fmt: skip
    return method


def _check(
    steps: int, refinements: int, told: str, guidance: float, nudge: float, gamma: float,
    method: str,
) -> None:  # fmt: skip
    check_whole("invert", "steps", steps, at_least=1)
    check_whole("invert", "refinements", refinements, at_least=0)
    check_number("invert", "guidance", guidance, at_least=0)
    check_number("invert", "nudge", nudge, at_least=0.01, at_most=100)
    check_number("invert", "gamma", gamma, at_least=0, at_most=1)
    if told not in ("noisier", "own"):
        raise SettingError(f"invert: told={told!r} must be 'noisier' or 'own'")
    if refinements and method not in ("ddim", "euler"):
        raise SettingError(
            f"invert: refinements={refinements} is for 'ddim' and 'euler', not for {method!r}"
        )


def _solver(
    method: str, told: Told, refinements: int, noise: Tensor, gamma: float, consistent: bool
) -> Solver:
    if method == "rf-solver":
        return midpoint(up=True)
    if method == "fireflow":
        return fireflow(up=True)
    if method == "rf-inversion":
        return controlled_up(noise, gamma, consistent=consistent)
    return euler_up(told, refinements)


def _prompts(prompt: str | Sequence[str] | None, items: int) -> tuple[str, ...]:
    texts = [prompt or ""] * items if prompt is None or isinstance(prompt, str) else list(prompt)
    if len(texts) != items:
        raise SettingError(f"{items} pictures, but {len(texts)} prompts; give one each, or one")
    return tuple(texts)


def _listed(source: Any) -> list[Image.Image]:
    return [source] if isinstance(source, Image.Image) else list(source)


def _size(pipe: Any, source: Source) -> Size:
    if not isinstance(source, Tensor):
        return _listed(source)[0].size
    if is_packed(pipe) and source.dim() == 3:
        raise SettingError(
            f"packed latents of shape {tuple(source.shape)} do not tell the picture's size; give "
            "size=(width, height) in pixels"
        )
    factor = int(getattr(pipe, "vae_scale_factor", getattr(pipe, "vae_scale_factor_spatial", 8)))
    return source.shape[-1] * factor, source.shape[-2] * factor
