"""The runs of one pipeline: opened by ``set_timesteps``, closed after the last step or an error."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attnctl.calls import LatentsCall, RunStart, Step
from attnctl.editing.features import Fingerprint
from attnctl.engine.clock import Clock
from attnctl.engine.copies import refuse_copies
from attnctl.engine.layouts import layouts_of, use_layouts_of_call
from attnctl.engine.planner import Planner
from attnctl.engine.prompts import PromptWatch
from attnctl.engine.run import Run, Scaling, pipeline_frame
from attnctl.errors import BranchError, PipelineBusyError, SchedulerError, UnsupportedModelError
from attnctl.report import Report, settings_of
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver


class Runs:
    """Listens to the scheduler and keeps the state of the run that is open.

    Attributes:
        pipe: The pipeline, ``None`` for a bare denoiser.
        scheduler: The scheduler that is watched, ``None`` if there is none.
        kernel: Kernel forced at controlled sites, or ``"auto"``.
        branches: Guidance branches as the user named them, or ``None``.
        planner: Plan of all techniques that are attached.
        drivers: The pipeline's denoisers by name.
        prompts: What the text encoders were given.
        report: Report of the latest run.
        results: What techniques keep of the latest run, by name.
        before_first_call: Called before the first denoiser call of each run; may refuse.
    """

    def __init__(
        self, pipe: Any | None, planner: Planner, kernel: str, branches: Sequence[str] | None
    ) -> None:
        self.pipe, self.kernel, self.planner = pipe, kernel, planner
        self.scheduler = getattr(pipe, "scheduler", None)
        self.branches = None if branches is None else tuple(branches)
        self.drivers: dict[str, DenoiserDriver] = {}
        self.prompts = PromptWatch(pipe)
        self.report = Report()
        self.results: dict[str, Any] = {}
        self.before_first_call: Callable[[], None] = lambda: None
        self._run: Run | None = None
        self._are_copies = False  # the pipeline steps with copies of its scheduler

    def on_set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Open a run."""
        self._refuse_second_thread()
        self.end()
        self._are_copies = False
        result = original(*args, **kwargs)
        self._open_run()
        return result

    def on_scale_model_input(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Remember the latents before and after the scheduler's scaling."""
        result = original(*args, **kwargs)
        if self._run is not None and not self._run.clock.is_open:
            sample = args[0] if args else kwargs["sample"]
            options = {k: v for k, v in kwargs.items() if k != "sample"}
            self._run.scaling = Scaling(original, sample, tuple(args[1:]), options)
        return result

    def on_step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Hand moved latents over, close the step, let techniques edit the result."""
        run = self._run
        if run is None or not self.planner.techniques:
            return original(*args, **kwargs)
        if not run.clock.is_open:
            raise SchedulerError(
                "scheduler.step was called without a call of the attached denoiser before it; if "
                "the pipeline's model was replaced, detach and attach again"
            )
        given = inspect.signature(original).bind(*args, **kwargs)
        sample = given.arguments["sample"]
        self._verify_items(run, sample)
        if run.moved is not None:
            if _long_axes(run.moved) != _long_axes(sample):
                raise UnsupportedModelError(
                    f"{type(self.pipe).__name__} folds its latents for the scheduler, so they "
                    "cannot be moved; detach the techniques that move latents"
                )
            given.arguments["sample"] = run.moved.to(sample).reshape(sample.shape)
        result = original(*given.args, **given.kwargs)
        return self._close_step(run, result)

    def handler_of_copy(self) -> Callable[..., Any] | None:
        """Watch a copy of the scheduler that the pipeline makes in a run, to step with it."""
        is_running = self._run is not None or self._are_copies
        is_inside = self.pipe is not None and pipeline_frame(self.pipe) is not None
        return self._on_step_of_copy if is_running and is_inside else None

    def _on_step_of_copy(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Close the step with the first of the copies that step; each holds a frame or a stream."""
        run = self._run
        if run is not None and run.clock.is_open and self.planner.techniques:
            refuse_copies(self.pipe, run, self.planner.techniques)
            self._are_copies = True
            self._finish_step(run)
        return original(*args, **kwargs)

    def _close_step(self, run: Run, result: Any) -> Any:
        step = run.clock.step
        if step is not None and run.clock.is_solver_step_complete:
            for technique in self.planner.active(step.index, step.total):
                if technique.overrides("after_step"):
                    latents = result[0] if isinstance(result, tuple) else result.prev_sample
                    strength = technique.strength_at(step.index, step.total)
                    call = LatentsCall(step, latents, strength, self.state_of(technique))
                    edited = technique.after_step(call)
                    if edited is not None:
                        result = _with_latents(result, edited)
        self._finish_step(run)
        return result

    def _finish_step(self, run: Run) -> None:
        run.clock.close()
        run.scaling = run.moved = run.kept = None
        if run.clock.step is not None and run.clock.is_solver_step_complete:
            self._drop_unneeded(run, run.clock.step)
        if run.clock.is_last:
            self.end(is_complete=True)

    def _drop_unneeded(self, run: Run, step: Step) -> None:
        """Free what techniques keep at sites once they will not act again in this run."""
        if step.total is None:
            return
        for label in run.cache.labels():
            later = range(step.index + 1, step.total)
            technique = self._labelled()[label]
            if not any(technique.strength_at(index, step.total) for index in later):
                run.cache.drop(label)

    def _verify_items(self, run: Run, sample: torch.Tensor) -> None:
        if run.is_verified or run.items is None:
            return
        # Some video pipelines fold frames into the batch.
        is_comparable = sample.ndim == len(run.size)
        if is_comparable and sample.shape[0] != run.items:
            guessed, rows = run.items, run.rows
            self.end()
            raise BranchError(
                f"the denoiser's {rows} rows were taken for {guessed} items, but the scheduler has "
                f"{sample.shape[0]}; name the guidance branches in their order with "
                "attach(..., branches=('uncond', 'cond'))"
            )
        run.is_verified = True

    def run_for(self, driver: "DenoiserDriver") -> Run:
        """The run that a denoiser call belongs to.

        Raises:
            SchedulerError: the pipeline runs with a scheduler that is not watched.
            PipelineBusyError: another thread is inside the pipeline.
        """
        if self._run is not None:
            self._refuse_second_thread()
            return self._run
        if self.pipe is None:
            return self._open_run()
        current = getattr(self.pipe, "scheduler", None)
        if current is not self.scheduler:
            raise SchedulerError(
                f"the pipeline's scheduler was replaced by {type(current).__name__} while "
                "techniques were attached; set the scheduler first, then attach"
            )
        if current is None or self._are_copies:
            return self._open_run()  # or the next part of a long clip
        raise SchedulerError(
            f"{driver.name} was called outside a run of {type(current).__name__} "
            "(no set_timesteps was seen); attach to the model itself to use it without its "
            "pipeline, or detach"
        )

    def begin(self, run: Run, driver: "DenoiserDriver", inputs: Mapping[str, Any]) -> bool:
        """Know how the tokens of a call lie; at a run's first one, begin it and return true."""
        is_first = not run.has_begun
        if is_first:
            self._begin(run, inputs)
        use_layouts_of_call(self.planner, run, driver, inputs)
        return is_first

    def _begin(self, run: Run, inputs: Mapping[str, Any]) -> None:
        """First denoiser call of a run: layouts, exact conflicts, and each technique's state."""
        self.report = run.report  # some pipelines set timesteps again behind their last step
        self.before_first_call()
        run.has_begun = True
        run.layouts = layouts_of(self.planner, self.drivers.values(), inputs)
        total = run.clock.total
        self.planner.complete(total, run.layouts)
        self.report.total = total
        prompts = self.prompts.of_items(run.items or 1)
        for technique in self.planner.techniques:
            sites = self.planner.sites_of(technique)
            start = RunStart(
                items=run.items or 1,
                total=total,
                sites=sites,
                layouts={s.path: run.layouts.get((s.denoiser, s.path)) for s in sites},
                prompts=prompts,
                warn=self.report.warn,
                note=self.report.note,
                fingerprint=partial(self._fingerprint, run, inputs),
            )
            label = self.planner.label(technique)
            self.report.matched[label] = (
                *(f"{site.denoiser}.{site.path}" for site in sites),
                *self.planner.modules.all_paths(label),
            )
            run.states[label] = technique.begin(start)
            if total is not None and not _ever_acts(technique, total):
                is_off = bool(technique.steps.active_steps(total))
                self.report.warn(
                    f"{label}: it is switched off by its settings, so it has no effect"
                    if is_off
                    else f"{label}: steps={technique.steps} is never active in {total} steps"
                )

    def _fingerprint(self, run: Run, inputs: Mapping[str, Any]) -> Fingerprint:
        """What features of another run must have in common with this one."""
        drivers = list(self.drivers.values())
        names = (driver.arguments.latents_name(inputs) for driver in drivers)
        latents = next((inputs[name] for name in names if name in inputs), None)
        shape = () if latents is None else latents.shape[1:]
        models = [driver.model for driver in drivers]
        return Fingerprint.of_run(models, self.scheduler, shape, run.items or 1)

    def state_of(self, technique: Technique) -> Any:
        """What a technique keeps in the run that is open."""
        if self._run is None:
            return None
        return self._run.states.get(self.planner.label(technique))

    def result_of(self, name: str) -> Any:
        """What a technique keeps of the latest run, or of the one that is open."""
        if self._run is not None and name in self._run.states:
            return self._run.states[name]
        return self.results.get(name)

    def _open_run(self) -> Run:
        self._run = Run(Clock(self.scheduler), Report(settings_of(self._labelled())))
        return self._run

    def end(self, *, is_complete: bool = False) -> None:
        """Close the run that is open; its state is dropped, results stay if it is complete."""
        run, self._run = self._run, None
        for driver in self.drivers.values():
            driver.close()
            driver.keys_of = {}
        if run is None:
            return
        run.cache.clear()
        if is_complete:
            self.results = {n: t.end(run.states.get(n)) for n, t in self._labelled().items()}

    def _labelled(self) -> dict[str, Technique]:
        return dict(zip(self.planner.labels, self.planner.techniques, strict=True))

    def _refuse_second_thread(self) -> None:
        run = self._run
        if run is None or self.pipe is None or run.is_mine():
            return
        if pipeline_frame(self.pipe, run.thread) is not None:
            raise PipelineBusyError(
                f"this {type(self.pipe).__name__} is already running in another thread; wait for "
                "it, or use one pipeline (and session) a thread"
            )


def _ever_acts(technique: Technique, total: int) -> bool:
    return any(technique.strength_at(index, total) for index in range(total))


def _with_latents(result: Any, latents: torch.Tensor) -> Any:
    if isinstance(result, tuple):
        return (latents, *result[1:])
    result.prev_sample = latents
    return result


def _long_axes(latents: torch.Tensor) -> list[int]:
    """Sizes of the axes; one frame may have an axis or none."""
    return [size for size in latents.shape if size > 1]
