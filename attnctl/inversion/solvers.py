"""Solvers: from the picture up to noise, from noise down to a picture, or from picture to picture.

Each is a generator (see :mod:`attnctl.inversion.driven`), so that it reads as its formula does.
Levels count from noise, 0, to clean, ``steps``.
"""

from collections.abc import Generator, Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from attnctl.inversion.driven import Evaluation, Keep, Solver, Solving
from attnctl.inversion.levels import Ladder, Level

Told = Literal["noisier", "own"]


def euler_up(told: Told = "noisier", refinements: int = 0) -> Solver:
    """Euler inversion: DDIM inversion for diffusion models.

    Args:
        told: The timestep that an explicit step tells the denoiser: of the noisier level that it
            goes to, as diffusers' DDIM inversion and Stable Flow do, or of the level where the
            latents are.
        refinements: Fixed-point iterations ``x <- x' + step * d(x)`` after each explicit step. At
            the fixed point, a denoising step returns exactly to where the inversion came from.

    Source: DDIM, Song et al., 2010.02502; fixed-point inversion, e.g. Pan et al., 2309.04907.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents = start
        for here, there in _upwards(ladder):
            timestep = there.timestep if told == "noisier" else here.timestep
            found = yield Evaluation(latents, timestep)
            guess = ladder.moved(latents, ladder.derivative(latents, found, here), here, there)
            for _ in range(refinements):
                found = yield Evaluation(guess, there.timestep, is_first=False, is_state=False)
                guess = ladder.moved(latents, ladder.derivative(guess, found, there), here, there)
            latents = guess
            keep(there, latents)
        return latents

    return solve


def euler_down(first: int = 0) -> Solver:
    """Euler sampling (DDIM for diffusion models) from level ``first`` to the clean one."""

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents = start
        for here, there in _downwards(ladder, first):
            found = yield Evaluation(latents, here.timestep)
            latents = ladder.moved(latents, ladder.derivative(latents, found, here), here, there)
            keep(there, latents)
        return latents

    return solve


def midpoint(*, up: bool) -> Solver:
    """Second-order steps through the middle of two levels: RF-Solver's update.

    ``x + D v + D^2/2 * (vm - v)/(D/2)`` is ``x + D vm``, with ``vm`` half a step ahead.

    Source: Wang et al., 2411.04746.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents = start
        for here, there in _upwards(ladder) if up else _downwards(ladder):
            found = yield Evaluation(latents, here.timestep)
            latents, _ = yield from _through_middle(
                latents, ladder.derivative(latents, found, here), ladder, here, there
            )
            keep(there, latents)
        return latents

    return solve


def fireflow(*, up: bool) -> Solver:
    """Second-order steps whose first derivative is the last step's middle one.

    One evaluation a step, and one more at the start.

    Source: Deng et al., 2412.07517.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents, derivative = start, None
        for here, there in _upwards(ladder) if up else _downwards(ladder):
            is_first = derivative is not None
            if derivative is None:
                found = yield Evaluation(latents, here.timestep)
                derivative = ladder.derivative(latents, found, here)
            latents, derivative = yield from _through_middle(
                latents, derivative, ladder, here, there, is_first=is_first
            )
            keep(there, latents)
        return latents

    return solve


def controlled_up(noise: Tensor, gamma: float, *, consistent: bool) -> Solver:
    """RF-Inversion's forward ODE: a flow model's velocity, pulled towards a given noise.

    Args:
        noise: Where ``gamma=1`` ends, of the latents' shape.
        gamma: 0 follows the model, 1 goes straight to ``noise``.
        consistent: Times and steps belong together. Otherwise as in diffusers' community
            pipeline: step ``i`` is taken at time ``i / steps`` with the size of the sampler's step
            ``i``, counted from noise.

    Source: Rout et al., 2410.10792, eq. 8.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        latents, goal = start, noise.to(start) if noise.shape == start.shape else start
        unit = ladder.levels[0].timestep / ladder.levels[0].sigma
        for number, (here, there) in enumerate(_upwards(ladder)):
            time, size, timestep = here.sigma, there.sigma - here.sigma, here.timestep
            if not consistent:
                time = number / ladder.steps
                timestep = time * unit
                size = ladder.levels[number].sigma - ladder.levels[number + 1].sigma
            found = yield Evaluation(latents, timestep)
            pull = (goal - latents) / (1 - time)
            latents = latents + size * (found + gamma * (pull - found))
            if consistent:
                keep(there, latents)
        return latents

    return solve


def flow_edit(n_max: int, n_min: int, n_avg: int, seed: int) -> Solver:
    """FlowEdit: move a picture along the difference of two prompts' velocities; no inversion.

    Item 0 is the source and stays; item 1 starts from it and becomes the edit. Both are evaluated
    in one call, at the same noise. In diffusion models it is written for ``x / alpha`` and
    ``sigma / alpha``, which is ours.

    Args:
        n_max: Steps before the clean end that edit; earlier ones are skipped.
        n_min: Of these, last ones that sample the target as usual.
        n_avg: Noises that each step averages over.
        seed: Of the noises.

    Source: Kulikov et al., 2412.08629, algorithm 1.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        source, edit = start[:1], start[1:]
        generator = torch.Generator("cpu").manual_seed(seed)
        sampled: Tensor | None = None
        for here, there in _downwards(ladder, ladder.steps - n_max):
            left = ladder.steps - ladder.levels.index(here)
            weight = 1.0 if ladder.is_flow else here.alpha
            if left <= n_min:
                if sampled is None:
                    sampled = ladder.noised(source, _noise(source, generator), here)
                    sampled = sampled + weight * (edit - source)
                at_source = ladder.noised(source, _noise(source, generator), here)
                both = torch.cat([at_source, sampled])
                found = yield Evaluation(both, here.timestep, is_state=False)
                both = ladder.moved(both, ladder.derivative(both, found, here), here, there)
                sampled = both[1:]
                continue
            difference = torch.zeros_like(edit)
            for draw in range(n_avg):
                at_source = ladder.noised(source, _noise(source, generator), here)
                both = torch.cat([at_source, at_source + weight * (edit - source)])
                found = yield Evaluation(both, here.timestep, draw == 0, is_state=False)
                derivative = ladder.derivative(both, found, here)
                difference = difference + (derivative[1:] - derivative[:1]) / n_avg
            edit = edit + (_time(ladder, there) - _time(ladder, here)) * difference
        return torch.cat([source, edit if sampled is None else sampled])

    return solve


def noise_and_sample(first: int, seed: int, *, keeps_picture: bool = True) -> Solver:
    """SDEdit: noise a picture to level ``first`` and sample from there.

    Args:
        first: Level to start from, counted from noise.
        seed: Of the noise.
        keeps_picture: Otherwise only the noise is used: plain generation from level 0.

    Source: Meng et al., 2108.01073.
    """

    def solve(start: Tensor, ladder: Ladder, keep: Keep) -> Solving:
        noise = _noise(start, torch.Generator("cpu").manual_seed(seed))
        noised = ladder.noised(start, noise, ladder.levels[first]) if keeps_picture else noise
        return (yield from euler_down(first)(noised, ladder, keep))

    return solve


def _through_middle(
    latents: Tensor,
    derivative: Tensor,
    ladder: Ladder,
    here: Level,
    there: Level,
    *,
    is_first: bool = False,
) -> Generator[Evaluation, Tensor, tuple[Tensor, Tensor]]:
    """Half a step, an evaluation, and the whole step with what it found."""
    middle = ladder.between(here, there)
    ahead = ladder.moved(latents, derivative, here, middle)
    found = yield Evaluation(ahead, middle.timestep, is_first=is_first, is_state=False)
    derivative = ladder.derivative(ahead, found, middle)
    return ladder.moved(latents, derivative, here, there), derivative


def _upwards(ladder: Ladder) -> Iterator[tuple[Level, Level]]:
    """Neighbouring levels, from clean to noise."""
    levels = ladder.levels[::-1]
    return pairwise(levels)


def _downwards(ladder: Ladder, first: int = 0) -> Iterator[tuple[Level, Level]]:
    """Neighbouring levels, from level ``first`` to the clean one."""
    levels = ladder.levels[first:]
    return pairwise(levels)


def _time(ladder: Ladder, level: Level) -> float:
    """A level in the time that derivatives belong to."""
    return level.sigma if ladder.is_flow else level.sigma / level.alpha


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
