"""The scheduler is the clock: ``set_timesteps`` opens a run, ``step`` closes a denoising step."""

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from attnctl.calls import Step

SHADOWED = ("set_timesteps", "scale_model_input", "step")


class Listener(Protocol):
    """Receives the scheduler's calls; each gets the original method first."""

    def on_set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the original and open a run."""

    def on_scale_model_input(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the original and remember the latents before and after."""

    def on_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Hand over moved latents, run the original, close the step."""

    def handler_of_copy(self) -> Callable[..., Any] | None:
        """What handles ``step`` of a copy that is made now; ``None`` leaves the copy free."""


class _Shadow:
    """Stands on one scheduler instance in place of a method; a copy of the scheduler is free.

    A copy that a pipeline makes to step with, in a run, is watched too: see ``of_copy``.
    """

    def __init__(
        self,
        scheduler: Any,
        name: str,
        handler: Callable[..., Any],
        of_copy: Callable[[], Callable[..., Any] | None] = lambda: None,
    ) -> None:
        original = getattr(scheduler, name)
        functools.update_wrapper(self, original)
        self.__signature__ = inspect.signature(original)
        self._scheduler, self._name = scheduler, name
        self._original, self._handler, self._of_copy = original, handler, of_copy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo.get(id(self._scheduler), self._scheduler)
        handler = None if owner is self._scheduler else self._of_copy()
        if handler is None:
            return _own_method(owner, self._name)
        return _Shadow(owner, self._name, handler)

    def __reduce__(self) -> tuple[Any, ...]:
        return _own_method, (self._scheduler, self._name)


def _own_method(scheduler: Any, name: str) -> Callable[..., Any]:
    return types.MethodType(getattr(type(scheduler), name), scheduler)


def is_shadowed(scheduler: Any) -> bool:
    """Whether a session already watches this scheduler."""
    return isinstance(scheduler.__dict__.get("step"), _Shadow)


def shadow_scheduler(scheduler: Any, listener: Listener) -> Callable[[], None]:
    """Watch one scheduler instance; return what takes the watch off again."""
    placed: dict[str, tuple[_Shadow, Any]] = {}
    for name in SHADOWED:
        if hasattr(scheduler, name):
            of_copy = {"of_copy": listener.handler_of_copy} if name == "step" else {}
            shadow = _Shadow(scheduler, name, getattr(listener, f"on_{name}"), **of_copy)
            placed[name] = (shadow, scheduler.__dict__.get(name))
            scheduler.__dict__[name] = shadow

    def remove() -> None:
        for name, (shadow, before) in placed.items():
            if scheduler.__dict__.get(name) is shadow:
                if before is None:
                    del scheduler.__dict__[name]
                else:
                    scheduler.__dict__[name] = before

    return remove


class Clock:
    """Counts the solver steps of one run.

    Args:
        scheduler: The watched scheduler; ``None`` for a bare denoiser, where a call is a step.
    """

    def __init__(self, scheduler: Any | None) -> None:
        self._scheduler = scheduler
        self.total: int | None = None
        self.step: Step | None = None
        self.is_open = False
        self.calls = 0
        self._timesteps: list[float] = []
        self._index = -1
        self._iteration = -1

    def on_denoiser_call(self, timestep: Any) -> Step:
        """Open a step if none is open, and count the call.

        Args:
            timestep: What the pipeline gave to ``scale_model_input``, else to the denoiser.
        """
        if self.is_open and self._scheduler is not None and self.step is not None:
            self.calls += 1
            return self.step
        if self._scheduler is not None and self.total is None:
            self._timesteps = timesteps_left(self._scheduler, timestep)
            self.total = solver_steps(self._scheduler, self._timesteps)
        stage = solver_stage(self._scheduler)
        self._iteration += 1
        self._index += stage == 0
        self.calls, self.is_open = 0, True
        self.step = Step(
            index=max(self._index, 0),
            total=self.total,
            stage=stage,
            iteration=self._iteration,
            timestep=self._timestep(timestep),
            sigma=_sigma(self._scheduler),
        )
        return self.step

    def _timestep(self, given: Any) -> float:
        """The present timestep, without waiting for the device where the scheduler knows it."""
        if self._iteration < len(self._timesteps):
            return self._timesteps[self._iteration]
        return _number(given)

    def close(self) -> None:
        """Close the step that is open."""
        self.is_open = False

    @property
    def is_last(self) -> bool:
        """Whether the step that just closed was the run's last."""
        return self._scheduler is not None and self._iteration == len(self._timesteps) - 1

    @property
    def is_solver_step_complete(self) -> bool:
        """Whether the latents now stand at the next step (no correction is due)."""
        return self.is_last or solver_stage(self._scheduler) == 0


def solver_stage(scheduler: Any) -> int:
    """0 if the next evaluation is a solver step's first, from 1 if it is a correction."""
    if scheduler is None:
        return 0
    first = getattr(scheduler, "state_in_first_order", None)
    if first is not None:
        return 0 if first else 1
    if not hasattr(scheduler, "plms_timesteps"):
        return 0
    runge_kutta = _runge_kutta_evaluations(scheduler)
    if scheduler.counter < runge_kutta:
        return scheduler.counter % 4
    return int(not runge_kutta and scheduler.counter == 1)


def timesteps_left(scheduler: Any, timestep: Any) -> list[float]:
    """Timesteps of this run's denoiser evaluations; image-to-image starts in the middle."""
    timesteps = [float(t) for t in torch.as_tensor(scheduler.timesteps).tolist()]
    begin = getattr(scheduler, "_begin_index", None)
    if begin is None:
        now = _number(timestep)
        begin = timesteps.index(now) if now in timesteps else 0
    return timesteps[begin:]


def solver_steps(scheduler: Any, timesteps: list[float]) -> int:
    """Solver steps that these evaluations make: two-stage solvers evaluate twice a step."""
    told = getattr(scheduler, "solver_steps", None)
    if told is not None:
        return told
    order = getattr(scheduler, "order", 1)
    if order > 1:
        return max(1, math.ceil(len(timesteps) / order))
    if not hasattr(scheduler, "plms_timesteps"):
        return max(1, len(timesteps))
    runge_kutta = _runge_kutta_evaluations(scheduler)
    if not runge_kutta:
        return max(1, len(timesteps) - 1)  # PNDM evaluates its first step twice
    single = max(0, len(timesteps) - runge_kutta)
    return math.ceil(min(len(timesteps), runge_kutta) / 4) + single


def _runge_kutta_evaluations(scheduler: Any) -> int:
    """How many evaluations PNDM spends on its first steps, four on each."""
    return 0 if scheduler.config.skip_prk_steps else len(scheduler.prk_timesteps)


def _number(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def _sigma(scheduler: Any) -> float | None:
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if sigmas is None or index is None or index >= len(sigmas):
        return None
    return float(sigmas[index])
