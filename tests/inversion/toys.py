"""Small scheduler-side models for solvers: velocities that are known in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from attnctl.inversion.driven import Solver
from attnctl.inversion.levels import Ladder, Level

Model = Callable[[Tensor, float], Tensor]
"""Prediction for latents at a timestep."""


def flow_ladder(steps: int = 8, shift: float = 3.0) -> Ladder:
    """Levels of a rectified-flow sampler."""
    sampler = FlowMatchEulerDiscreteScheduler(shift=shift)
    sampler.set_timesteps(steps)
    return Ladder.of(sampler)


def diffusion_ladder(steps: int = 8, **config: object) -> Ladder:
    """Levels of Stable Diffusion's DDIM sampler."""
    sampler = ddim(**config)
    sampler.set_timesteps(steps)
    return Ladder.of(sampler)


def ddim(**config: object) -> DDIMScheduler:
    """Stable Diffusion's DDIM sampler."""
    given = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    given |= {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**{**given, **config})


def solved(
    solver: Solver, start: Tensor, ladder: Ladder, model: Model
) -> tuple[Tensor, int, list[tuple[Level, Tensor]]]:
    """Run a solver with a model: last latents, evaluations, and what it kept."""
    kept: list[tuple[Level, Tensor]] = []
    solving = solver(start.clone(), ladder, lambda level, x: kept.append((level, x.clone())))
    evaluations = 0
    try:
        asked = next(solving)
        while True:
            evaluations += 1
            asked = solving.send(model(asked.latents, asked.timestep))
    except StopIteration as stop:
        return stop.value, evaluations, kept


def network(seed: int = 0, gain: float = 0.3) -> Model:
    """A random smooth network with a Lipschitz constant of about ``gain``, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    second = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    first = gain * first / torch.linalg.matrix_norm(first, 2)
    second = second / torch.linalg.matrix_norm(second, 2)

    def predict(latents: Tensor, timestep: float) -> Tensor:
        return torch.tanh(latents @ first + timestep / 1000) @ second

    return predict


def random(seed: int, *shape: int) -> Tensor:
    """Seeded normal numbers, fp64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
