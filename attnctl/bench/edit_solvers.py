"""Ways down from noise that the edit benchmark compares."""

from __future__ import annotations

import torch
from torch import Tensor

from attnctl.inversion.driven import Evaluation, Keep, Solver, Solving
from attnctl.inversion.levels import Ladder
from attnctl.inversion.solvers import euler_down
from attnctl.trajectories import Trajectory


def from_half_way(strength: float, seeds: list[int]) -> Solver:
    """SDEdit: noise is added to the picture, then the target's prompt takes it away.

    Args:
        strength: Share of the steps that are run, in (0, 1].
        seeds: Of the noise, one a picture.

    Source: Meng et al., 2108.01073; what img2img pipelines do.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        first = ladder.steps - max(1, round(strength * ladder.steps))
        noise = start
        if len(start) == len(seeds):  # a scheduler's plan runs on other shapes
            drawn = [
                torch.randn(start.shape[1:], generator=torch.Generator().manual_seed(seed))
                for seed in seeds
            ]
            noise = torch.stack(drawn).to(start)
        noisy = ladder.noised(start, noise, ladder.levels[first])
        return (yield from euler_down(first)(noisy, ladder, keep))

    return solve


def beside_trajectory(trajectory: Trajectory) -> Solver:
    """Euler or DDIM steps whose first item follows a trajectory, whatever the model says."""

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents = start
        for number, here in enumerate(ladder.levels[:-1]):
            there = ladder.levels[number + 1]
            found = yield Evaluation(latents, here.timestep)
            latents = ladder.moved(latents, ladder.derivative(latents, found, here), here, there)
            if start.shape[1:] == trajectory.noise.shape[1:]:
                latents[:1] = trajectory.after(here.timestep).to(latents)
            keep(there, latents)
        return latents

    return solve


def controlled_down(clean: Tensor, eta: float, stop: float) -> Solver:
    """RF-Inversion's reverse ODE: a flow model's velocity, pulled towards a picture.

    Args:
        clean: Latents of the picture, ``(1, ...)``.
        eta: How far the velocity is replaced by the straight way to ``clean``, in [0, 1].
        stop: Fraction of the run after which the model is left alone.

    Source: Rout et al., 2410.10792, eq. 15.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents = start
        for number, here in enumerate(ladder.levels[:-1]):
            there = ladder.levels[number + 1]
            found = yield Evaluation(latents, here.timestep)
            if number < round(stop * ladder.steps) and start.shape[1:] == clean.shape[1:]:
                straight = (latents - clean.to(latents)) / here.sigma
                found = found + eta * (straight - found)
            latents = ladder.moved(latents, found, here, there)
            keep(there, latents)
        return latents

    return solve
