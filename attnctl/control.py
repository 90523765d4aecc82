"""Everything that is attached to one pipeline: taps, hooks, the clock, the run that is open.

Several sessions may share a control; the last one that leaves takes everything off.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from attnctl.calls import LatentsCall, RunStart
from attnctl.chain import tap
from attnctl.clock import Clock, is_shadowed, shadow_scheduler
from attnctl.denoiser import DenoiserDriver
from attnctl.errors import (
    AlreadyAttachedError,
    BranchError,
    ForeignProcessorError,
    PipelineBusyError,
    SchedulerError,
    UnsupportedModelError,
)
from attnctl.families import DENOISER_ATTRIBUTES, find_family
from attnctl.planner import Planner
from attnctl.prompts import PromptWatch
from attnctl.report import Report, settings_of
from attnctl.run import Run, Scaling, pipeline_frame
from attnctl.sites import attention_modules, find_sites, unwrapped
from attnctl.technique import Technique

_controls: WeakValueDictionary[int, "Control"] = WeakValueDictionary()


def control_of(target: Any, kernel: str, branches: Sequence[str] | None) -> "Control":
    """The control of a pipeline or bare denoiser; a new one if nothing is attached to it.

    Raises:
        AlreadyAttachedError: a denoiser is held by the control of another pipeline.
        UnsupportedModelError: the target has no denoiser with attention modules.
    """
    pipe, denoisers = find_denoisers(target)
    for name, model in denoisers.items():
        held = _controls.get(id(unwrapped(model)))
        if held is None:
            continue
        if held.pipe is not pipe:
            raise AlreadyAttachedError(
                f"{name} ({type(unwrapped(model)).__name__}) is already controlled by a session of "
                f"another {'pipeline' if pipe is not None else 'owner'}; detach that session first"
            )
        return held
    return Control(pipe, denoisers, kernel, branches)


def find_denoisers(target: Any) -> tuple[Any | None, dict[str, nn.Module]]:
    """The pipeline (``None`` for a bare denoiser) and its denoisers by attribute name."""
    if isinstance(target, type):
        raise TypeError(f"attach takes a pipeline object, not the class {target.__name__}")
    if isinstance(target, nn.Module):
        found = {"denoiser": target}
        pipe = None
    else:
        parts = {**getattr(target, "components", {})}
        parts |= {name: getattr(target, name, None) for name in DENOISER_ATTRIBUTES}
        found = {n: m for n, m in parts.items() if isinstance(m, nn.Module) and _is_denoiser(n, m)}
        pipe = target
    found = {n: m for n, m in found.items() if next(attention_modules(m), None) is not None}
    if not found:
        raise UnsupportedModelError(
            f"{type(target).__name__} has no denoiser with attention modules; attach takes a "
            "diffusers pipeline or one of its denoising models"
        )
    return pipe, found


def _is_denoiser(name: str, model: nn.Module) -> bool:
    module = type(unwrapped(model)).__module__
    is_one = module.startswith(("diffusers.models.unets", "diffusers.models.transformers"))
    return name in DENOISER_ATTRIBUTES or is_one


class Control:
    """What is attached to one pipeline.

    Attributes:
        pipe: The pipeline, ``None`` for a bare denoiser.
        kernel: Kernel forced at controlled sites, or ``"auto"``.
        branches: Guidance branches as the user named them, or ``None``.
        planner: Plan of all techniques that are attached.
        report: Report of the latest run.
        results: What techniques keep of the latest run, by name.
        checks_numbers: Whether predictions are checked for NaN after a technique edited them.
    """

    checks_numbers = True

    def __init__(
        self,
        pipe: Any | None,
        denoisers: Mapping[str, nn.Module],
        kernel: str,
        branches: Sequence[str] | None,
    ) -> None:
        self.pipe, self.kernel = pipe, kernel
        self.branches = None if branches is None else tuple(branches)
        self.results: dict[str, Any] = {}
        self.report = Report()
        self.prompts = PromptWatch(pipe)
        self._denoisers = dict(denoisers)
        families = {name: find_family(model) for name, model in denoisers.items()}
        self.sites = {n: find_sites(n, m, families[n]) for n, m in denoisers.items()}
        self.planner = Planner((), self.sites, families)
        self.drivers = {
            n: DenoiserDriver(n, m, families[n], self) for n, m in denoisers.items()
        }
        self._scheduler = getattr(pipe, "scheduler", None)
        self._run: Run | None = None
        self._undo = ExitStack()
        self._taps: dict[tuple[str, str], _Placed] = {}

    # --- attaching and detaching ---------------------------------------------------------------

    def change(self, techniques: Sequence[Technique]) -> None:
        """Put exactly these techniques in force; everything is checked before anything changes."""
        names = [technique.name for technique in techniques]
        for name in names:
            if names.count(name) > 1:
                raise AlreadyAttachedError(
                    f"technique {name!r} is attached twice; detach the session that has it, or "
                    "give one technique all its settings"
                )
        self._check_target(techniques)
        families = {name: driver.family for name, driver in self.drivers.items()}
        planner = Planner(techniques, self.sites, families)
        self._end_run(is_complete=False)
        is_first = not self.planner.techniques
        if not techniques:
            self.planner = planner
            self._leave()
            return
        try:
            if is_first:
                self._enter()
            self._place_taps(planner)
        except BaseException:
            if is_first:
                self._leave()
            raise
        self.planner = planner

    def _check_target(self, techniques: Sequence[Technique]) -> None:
        for technique in techniques:
            if self.pipe is None and technique.needs_loop:
                raise UnsupportedModelError(
                    f"{technique.name} moves latents between steps, which a bare denoiser does "
                    "not show; attach to the pipeline"
                )
            if self.pipe is None and technique.steps.in_fractions:
                technique.strength_at(0, None)

    def _enter(self) -> None:
        scheduler = self._scheduler
        if scheduler is not None and is_shadowed(scheduler):
            raise AlreadyAttachedError(
                "the scheduler is watched by a session of another pipeline; give this pipeline its "
                "own: pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)"
            )
        for driver in self.drivers.values():
            _controls[id(unwrapped(driver.model))] = self
            self._undo.callback(_controls.pop, id(unwrapped(driver.model)), None)
            before = driver.model.register_forward_pre_hook(_Hook(driver.before), with_kwargs=True)
            self._undo.callback(before.remove)
            after = driver.model.register_forward_hook(
                _Hook(driver.after), with_kwargs=True, always_call=True
            )
            self._undo.callback(after.remove)
        if scheduler is not None:
            self._undo.callback(shadow_scheduler(scheduler, self))
        self._undo.callback(self.prompts.install())

    def _leave(self) -> None:
        for placed in self._taps.values():
            placed.restore()
        self._taps.clear()
        self._undo.close()
        self._run = None

    def _place_taps(self, planner: Planner) -> None:
        wanted = {(site.denoiser, site.path): site for site in planner.selected}
        fresh: list[tuple[str, str]] = []
        try:
            for key in wanted:
                if key not in self._taps:
                    self._taps[key] = self._place(*key)
                    fresh.append(key)
        except BaseException:
            for key in fresh:
                self._taps.pop(key).restore()
            raise
        for key in [key for key in self._taps if key not in wanted]:
            self._taps.pop(key).restore()

    def _place(self, denoiser: str, path: str) -> "_Placed":
        module = unwrapped(self._denoisers[denoiser]).get_submodule(path)
        return _Placed(module, tap(self.drivers[denoiser], path, module.processor))

    def rebase(self) -> None:
        """Accept processors that were replaced from outside, and control them again."""
        self._end_run(is_complete=False)
        for key, placed in list(self._taps.items()):
            if not placed.is_in_place:
                self._taps[key] = self._place(*key)

    # --- the scheduler ---------------------------------------------------------------------------

    def on_set_timesteps(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Open a run."""
        self._refuse_second_thread()
        self._end_run(is_complete=False)
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
        names = ("model_output", "timestep", "sample")
        given = dict(zip(names, args, strict=False)) | kwargs
        rest = args[len(names) :]
        self._verify_items(run, given["sample"])
        if run.moved is not None:
            given["sample"] = run.moved.to(given["sample"])
        ordered = [given.pop(name) for name in names]
        result = original(*ordered, *rest, **given)
        return self._close_step(run, result)

    def _close_step(self, run: Run, result: Any) -> Any:
        step = run.clock.step
        run.clock.close()
        run.scaling = run.moved = run.delta = None
        if step is not None and run.clock.is_solver_step_complete:
            for technique in self.planner.active(step.index, step.total):
                if technique.overrides("after_step"):
                    latents = result[0] if isinstance(result, tuple) else result.prev_sample
                    strength = technique.strength_at(step.index, step.total)
                    call = LatentsCall(step, latents, strength, self.state_of(technique))
                    edited = technique.after_step(call)
                    if edited is not None:
                        result = _with_latents(result, edited)
        if run.clock.is_last:
            self._end_run(is_complete=True)
        return result

    def _verify_items(self, run: Run, sample: torch.Tensor) -> None:
        if run.is_verified or run.items is None:
            return
        if sample.shape[0] != run.items:
            guessed, rows = run.items, run.rows
            self.fail()
            raise BranchError(
                f"the denoiser's {rows} rows were taken for {guessed} items, but the scheduler has "
                f"{sample.shape[0]}; name the guidance branches in their order with "
                "attach(..., branches=('uncond', 'cond'))"
            )
        run.is_verified = True

    # --- runs --------------------------------------------------------------------------------------

    def run_for(self, driver: DenoiserDriver) -> Run:
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
        if current is not self._scheduler:
            raise SchedulerError(
                f"the pipeline's scheduler was replaced by {type(current).__name__} while "
                "techniques were attached; set the scheduler first, then attach"
            )
        if current is None:
            return self._open_run()
        raise SchedulerError(
            f"{driver.name} was called outside a run of {type(current).__name__} "
            "(no set_timesteps was seen); attach to the model itself to use it without its "
            "pipeline, or detach"
        )

    def begin(self, run: Run, inputs: Mapping[str, Any]) -> None:
        """First denoiser call of a run: layouts, exact conflicts, and each technique's state."""
        self._refuse_foreign_processors()
        run.has_begun = True
        if any(t.needs().layout or t.where.needs_grid for t in self.planner.techniques):
            for site in self.planner.selected:
                driver = self.drivers[site.denoiser]
                config = getattr(unwrapped(driver.model), "config", {})
                run.layouts[(site.denoiser, site.path)] = driver.family.layout(site, inputs, config)
        total = run.clock.total
        self.planner.complete(total, run.layouts)
        self.report.total = total
        prompts = self.prompts.of_items(run.items or 1)
        for technique in self.planner.techniques:
            if total is not None and not any(technique.strength_at(i, total) for i in range(total)):
                self.report.warn(f"{technique.name}: steps={technique.steps} is never active in {total} steps")
            sites = self.planner.sites_of(technique)
            layouts = {s.path: run.layouts.get((s.denoiser, s.path)) for s in sites}
            start = RunStart(
                items=run.items or 1,
                total=total,
                sites=sites,
                layouts=layouts,
                prompts=prompts,
                warn=self.report.warn,
            )
            run.states[technique.name] = technique.begin(start)

    def state_of(self, technique: Technique) -> Any:
        """What a technique keeps in the run that is open."""
        return None if self._run is None else self._run.states.get(technique.name)

    def result_of(self, name: str) -> Any:
        """What a technique keeps of the latest run, or of the one that is open."""
        if self._run is not None and name in self._run.states:
            return self._run.states[name]
        return self.results.get(name)

    def fail(self) -> None:
        """Drop the state of a run that was broken off."""
        self._end_run(is_complete=False)

    def _open_run(self) -> Run:
        self.report = Report(settings_of({t.name: t for t in self.planner.techniques}))
        self._run = Run(Clock(self._scheduler), self.report)
        return self._run

    def _end_run(self, *, is_complete: bool) -> None:
        run, self._run = self._run, None
        for driver in self.drivers.values():
            driver.active = {}
        if run is None:
            return
        if is_complete:
            self.results = {
                t.name: t.end(run.states.get(t.name)) for t in self.planner.techniques
            }
        self.prompts.clear()

    def _refuse_second_thread(self) -> None:
        run = self._run
        if run is None or self.pipe is None or run.is_mine():
            return
        if pipeline_frame(self.pipe, run.thread) is not None:
            raise PipelineBusyError(
                f"this {type(self.pipe).__name__} is already running in another thread; wait for "
                "it, or use one pipeline (and session) a thread"
            )

    def _refuse_foreign_processors(self) -> None:
        foreign = [path for (_, path), placed in self._taps.items() if not placed.is_in_place]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise ForeignProcessorError(
                f"the processor of {foreign[0]}{more} was replaced while techniques were attached "
                "(by set_attn_processor, load_ip_adapter or similar); call session.rebase() to "
                "control the new ones, or detach first"
            )


class _Placed:
    """A tap in the processor slot of one module."""

    def __init__(self, module: nn.Module, made: Any) -> None:
        self._module, self._tap = module, made
        self._original = module.processor
        self._slot: dict[str, Any] = (
            module._modules if "processor" in module._modules else module.__dict__
        )
        self._slot["processor"] = made

    @property
    def is_in_place(self) -> bool:
        """Whether nobody has replaced the tap."""
        return self._slot.get("processor") is self._tap

    def restore(self) -> None:
        """Put the original back, unless somebody has put another processor there."""
        if self.is_in_place:
            self._slot["processor"] = self._original


class _Hook:
    """A forward hook that the compiler leaves alone and that a copy of the model does not keep."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @torch._disable_dynamo  # pyright: ignore[reportPrivateUsage]
    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _do_nothing

    def __reduce__(self) -> str:
        return "_do_nothing"


def _do_nothing(*args: Any) -> None:
    return None


def _with_latents(result: Any, latents: torch.Tensor) -> Any:
    if isinstance(result, tuple):
        return (latents, *result[1:])
    result.prev_sample = latents
    return result
