"""Noise levels of a sampler, and how latents move from one to the next.

Latents at a level are ``alpha * clean + sigma * noise``. Flow models have ``alpha = 1 - s`` and
``sigma = s``, with the velocity ``noise - clean`` as derivative in ``s``. Diffusion models have
``alpha^2 + sigma^2 = 1``; there ``x / alpha`` moves along ``sigma / alpha`` with the noise as its
derivative, so that an Euler step is a DDIM step. One formula for each serves every solver.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnctl.editing.features import prediction_type
from attnctl.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level.

    Attributes:
        alpha: Weight of the clean latents.
        sigma: Weight of the noise.
        timestep: What the denoiser is told, in the scheduler's units.
    """

    alpha: float
    sigma: float
    timestep: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """The levels of one sampler with a number of steps, from noise to clean.

    Attributes:
        levels: ``steps + 1`` levels; the last one is where the sampler ends.
        prediction: ``"flow"``, ``"epsilon"``, ``"v_prediction"`` or ``"sample"``.
        table: For diffusion models, ``log(sigma / alpha)`` of every training timestep, rising.
    """

    levels: tuple[Level, ...]
    prediction: str
    table: tuple[float, ...] = ()

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.levels) - 1

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the sampler tells the denoiser in each step."""
        return tuple(level.timestep for level in self.levels[:-1])

    @property
    def is_flow(self) -> bool:
        """Whether the model is a flow model."""
        return self.prediction == "flow"

    @classmethod
    def of(cls, sampler: Any) -> "Ladder":
        """Read the levels of a sampler whose timesteps are set.

        Raises:
            UnsupportedModelError: its first level holds no trace of the clean latents, so that
                nothing can be inverted to it.
        """
        kind = prediction_type(sampler)
        if kind == "flow":
            return cls(_flow_levels(sampler), kind)
        return cls(_diffusion_levels(sampler), kind, _table(sampler))

    def derivative(self, latents: Tensor, prediction: Tensor, here: Level) -> Tensor:
        """The velocity of a flow model, the noise of a diffusion model.

        Args:
            latents: At ``here``.
            prediction: What the denoiser gave for them, after guidance.
            here: Their level.
        """
        if self.prediction in ("flow", "epsilon"):
            return prediction
        if self.prediction == "v_prediction":
            return here.alpha * prediction + here.sigma * latents
        return (latents - here.alpha * prediction) / max(here.sigma, 1e-8)

    def clean(self, latents: Tensor, derivative: Tensor, here: Level) -> Tensor:
        """The clean latents that a derivative points to."""
        if self.is_flow:
            return latents - here.sigma * derivative
        return (latents - here.sigma * derivative) / here.alpha

    def moved(self, latents: Tensor, derivative: Tensor, here: Level, there: Level) -> Tensor:
        """Latents after one straight step from one level to another, either way."""
        if self.is_flow:
            return latents + (there.sigma - here.sigma) * derivative
        ratio = there.alpha / here.alpha
        return ratio * latents + (there.sigma - ratio * here.sigma) * derivative

    def noised(self, clean: Tensor, noise: Tensor, level: Level) -> Tensor:
        """Clean latents with noise, as training saw them at a level."""
        return level.alpha * clean + level.sigma * noise

    def between(self, a: Level, b: Level) -> Level:
        """The level half way between two, in the solver's own time."""
        if self.is_flow:
            sigma = (a.sigma + b.sigma) / 2
            return Level(1 - sigma, sigma, (a.timestep + b.timestep) / 2)
        ratio = (a.sigma / a.alpha + b.sigma / b.alpha) / 2
        alpha = (1 + ratio * ratio) ** -0.5
        timestep = np.interp(np.log(max(ratio, 1e-12)), self.table, np.arange(len(self.table)))
        return Level(alpha, ratio * alpha, float(timestep))


def _flow_levels(sampler: Any) -> tuple[Level, ...]:
    sigmas = [float(s) for s in sampler.sigmas]
    timesteps = [*(float(t) for t in sampler.timesteps), 0.0]
    return tuple(Level(1 - s, s, t) for s, t in zip(sigmas, timesteps, strict=True))


def _diffusion_levels(sampler: Any) -> tuple[Level, ...]:
    cumulative = sampler.alphas_cumprod.double()
    timesteps = [int(t) for t in sampler.timesteps]
    squares = [float(cumulative[t]) for t in timesteps] + [float(sampler.final_alpha_cumprod)]
    if min(squares) < 1e-6:
        raise UnsupportedModelError(
            f"{type(sampler).__name__} starts from a level without any signal "
            "(rescale_betas_zero_snr), to which no picture can be inverted; use "
            "timestep_spacing='leading', or a scheduler without that rescaling"
        )
    return tuple(
        Level(square**0.5, (1 - square) ** 0.5, float(t))
        for square, t in zip(squares, [*timesteps, 0], strict=True)
    )


def _table(sampler: Any) -> tuple[float, ...]:
    cumulative = sampler.alphas_cumprod.double().clamp(1e-12, 1 - 1e-12)
    return tuple(torch.log((1 - cumulative) / cumulative).div(2).tolist())
