"""A scheduler that lets any solver run inside a stock pipeline.

The pipeline encodes prompts, packs latents, guides and calls its denoiser as it always does. Where
it asks its scheduler for timesteps and for the next latents, a solver answers: a generator that
yields what it wants evaluated and is sent the guided prediction.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attnctl.errors import UnsupportedModelError
from attnctl.inversion.levels import Ladder, Level


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a solver wants to know next.

    Attributes:
        latents: Where, fp32.
        timestep: What the denoiser is told.
        is_first: Whether it is the first evaluation of a solver step.
        is_state: Whether the solver goes on from these latents, so that they may be changed from
            outside; not where it only looks ahead.
    """

    latents: Tensor
    timestep: float
    is_first: bool = True
    is_state: bool = True


Solving = Generator[Evaluation, Tensor, Tensor]
"""Yields evaluations, is sent predictions, returns the last latents. The number of evaluations and
their timesteps must not depend on any value."""

Keep = Callable[[Level, Tensor], None]
"""Is told the latents at a level of the sampler."""

Solver = Callable[[Tensor, Ladder, Keep], Solving]
"""Starts from latents, fp32."""

OnEvaluation = Callable[[int, int], None]
"""Is told how many evaluations are done, and how many there are."""


class DrivenScheduler:
    """Stands in for a pipeline's scheduler while a solver runs.

    The solver's latents are fp32 whatever the pipeline computes in. Latents that a technique or a
    callback changes between steps are taken over.

    Args:
        sampler: The scheduler whose levels are used; it is not stepped.
        solver: What runs.
        start: Where it starts, fp32, ``(items, ...)``.
        dtype: What the pipeline computes in.
        keep: Is told the latents at the levels that the solver reaches.
        on_evaluation: Is told how far the run is; may raise to stop it.

    Attributes:
        given: What the pipeline must be called with as ``latents``, in its dtype and on its device.
        evaluations: Evaluations of the denoiser so far.
        result: The solver's last latents, fp32; ``None`` before the end.
    """

    init_noise_sigma = 1.0

    def __init__(
        self,
        sampler: Any,
        solver: Solver,
        start: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        keep: Keep = lambda level, latents: None,
        on_evaluation: OnEvaluation | None = None,
    ) -> None:
        self.sampler, self.config = sampler, sampler.config
        self.timesteps = torch.empty(0)
        self.num_inference_steps, self.order = 0, 1
        self.evaluations = 0
        self.result: Tensor | None = None
        self.given = start.to(dtype, copy=True)
        self._solver, self._start = solver, start
        self._keep, self._on_evaluation = keep, on_evaluation
        self._solving: Solving | None = None
        self._asked = Evaluation(self._start, 0.0)
        self._firsts: list[bool] = []

    @property
    def solver_steps(self) -> int:
        """Steps of the solver; some evaluate more than once in a step."""
        return sum(self._firsts)

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next evaluation is the first one of a solver step."""
        at = self.evaluations
        return self._firsts[at] if at < len(self._firsts) else True

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Set the sampler's timesteps, and list those that the solver will ask for."""
        named = {"sigmas": sigmas, "mu": mu}
        if sigmas is None:
            named["num_inference_steps"] = num_inference_steps
        chosen = {name: value for name, value in named.items() if value is not None}
        self.sampler.set_timesteps(device="cpu", **chosen)
        ladder = Ladder.of(self.sampler)
        planned = _plan(self._solver, ladder)
        self.timesteps = torch.tensor([told for told, _ in planned], device=device)
        self._firsts = [is_first for _, is_first in planned]
        self.num_inference_steps = sum(self._firsts)
        self.order = len(planned) // self.num_inference_steps
        self.evaluations, self.result = 0, None
        self._solving = self._solver(self._start.clone(), ladder, self._keep)
        self._asked = next(self._solving)
        self.given.copy_(self._asked.latents)  # the first input may depend on the levels

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Pipelines announce that they start at the beginning."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Latents go to the denoiser as they are."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """Send the prediction to the solver; give the latents that it wants evaluated next."""
        assert self._solving is not None  # set_timesteps comes first
        self._take_over(sample)
        self.evaluations += 1
        if self._on_evaluation is not None:
            self._on_evaluation(self.evaluations, len(self._firsts))
        try:
            self._asked = self._solving.send(model_output.float())
            given = self._asked.latents
        except StopIteration as stop:
            given = self.result = stop.value
        latents = given.to(sample.dtype)
        return SimpleNamespace(prev_sample=latents) if return_dict else (latents, latents)

    def settled(self, last: Tensor) -> Tensor:
        """The solver's last latents, with the rows that were changed after its last step.

        Args:
            last: What the pipeline ended with.
        """
        if self.result is None:
            return last
        changed = (last != self.result.to(last.dtype)).flatten(1).any(dim=1)
        changed = changed.view(-1, *[1] * (last.dim() - 1))
        return torch.where(changed, last.to(self.result), self.result)

    def _take_over(self, sample: Tensor) -> None:
        """Write rows that were changed from outside into the solver's own latents."""
        mine = self._asked.latents
        if sample.shape != mine.shape:
            raise UnsupportedModelError(
                f"the pipeline steps latents of shape {tuple(sample.shape)}, but was given "
                f"{tuple(mine.shape)}; it folds its latents, and cannot be driven"
            )
        changed = (sample != mine.to(sample.dtype)).flatten(1).any(dim=1)
        if bool(changed.any()) and not self._asked.is_state:
            raise UnsupportedModelError(
                "a technique or callback changed the latents where this solver only looks ahead; "
                "use a method of plain steps ('ddim', 'euler') with it"
            )
        if bool(changed.any()):
            mine[changed] = sample[changed].to(mine)


def _plan(solver: Solver, ladder: Ladder) -> list[tuple[float, bool]]:
    """Timesteps of all evaluations, from a run of the solver with two numbers as latents."""
    solving = solver(torch.zeros(2, 1), ladder, lambda level, latents: None)
    planned: list[tuple[float, bool]] = []
    try:
        asked = next(solving)
        while True:
            planned.append((asked.timestep, asked.is_first))
            asked = solving.send(torch.zeros_like(asked.latents))
    except StopIteration:
        return planned
