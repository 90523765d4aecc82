"""Everything that is attached to one pipeline: taps, hooks, the clock, the run that is open.

Several sessions may share a control; the last one that leaves takes everything off.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

from attnctl.engine.chain import tap
from attnctl.engine.clock import is_shadowed, shadow_scheduler
from attnctl.engine.denoiser import DenoiserDriver
from attnctl.engine.hooks import ForwardHook
from attnctl.engine.module_plans import refuse_compiled
from attnctl.engine.planner import Planner
from attnctl.engine.runs import Runs
from attnctl.engine.slots import ProcessorSlot
from attnctl.engine.targets import find_denoisers, name_of
from attnctl.errors import (
    AlreadyAttachedError,
    ForeignProcessorError,
    LayerNotFoundError,
    UnsupportedModelError,
    nearest,
)
from attnctl.families import find_family
from attnctl.sites import find_sites, unwrapped
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


class Control:
    """What is attached to one pipeline.

    Attributes:
        pipe: The pipeline, ``None`` for a bare denoiser.
        sites: Every attention site, by denoiser and path.
        runs: The pipeline's runs, and the plan that is in force.
    """

    def __init__(
        self,
        pipe: Any | None,
        denoisers: Mapping[str, nn.Module],
        kernel: str,
        branches: Sequence[str] | None,
    ) -> None:
        self.pipe = pipe
        self._denoisers = dict(denoisers)
        self._families = {name: find_family(model) for name, model in denoisers.items()}
        self.sites = {n: find_sites(n, m, self._families[n]) for n, m in denoisers.items()}
        self.runs = Runs(pipe, self.plan(()), kernel, branches)
        self.runs.before_first_call = self._refuse_foreign_processors
        self.runs.drivers = {
            n: DenoiserDriver(n, m, self._families[n], self.runs) for n, m in denoisers.items()
        }
        self._undo = ExitStack()
        self._slots: dict[tuple[str, str], ProcessorSlot] = {}

    def plan(self, techniques: Sequence[Technique]) -> Planner:
        """Plan techniques on this pipeline's sites; see `Planner` for what it refuses."""
        return Planner(techniques, self.sites, self._families, name_of(self.pipe))

    def change(self, techniques: Sequence[Technique]) -> None:
        """Put exactly these techniques in force; everything is checked before anything changes."""
        _refuse_doubles(techniques)
        self._check_target(techniques)
        planner = self.plan(techniques)
        self._check_modules(planner)
        self.runs.end()
        is_first = not self.runs.planner.techniques
        if not techniques:
            self.runs.planner = planner
            self._leave()
            return
        try:
            if is_first:
                self._enter()
            self._fill_slots(planner)
        except BaseException:
            if is_first:
                self._leave()
            raise
        self.runs.planner = planner

    def _check_target(self, techniques: Sequence[Technique]) -> None:
        for technique in techniques:
            if self.pipe is None and technique.needs_loop:
                raise UnsupportedModelError(
                    f"{technique.name} moves latents between steps, which a bare denoiser does "
                    "not show; attach to the pipeline"
                )
            if self.pipe is None:
                technique.strength_at(0, None)  # refuses fractions and ramps

    def _check_modules(self, planner: Planner) -> None:
        """Refuse hooks on modules that are not there, or that a compiled model would ignore."""
        for name, paths in planner.modules.users.items():
            model = self._denoisers[name]
            known = {path for path, _ in unwrapped(model).named_modules()}
            for path in paths:
                if path not in known:
                    raise LayerNotFoundError(
                        f'no module "{path}" in {name}; {nearest(path, known)}'
                    )
            if paths:
                refuse_compiled(model, planner.modules.labels_at(name))

    def _enter(self) -> None:
        scheduler = self.runs.scheduler
        if scheduler is not None and is_shadowed(scheduler):
            raise AlreadyAttachedError(
                "the scheduler is watched by a session of another pipeline; give this pipeline its "
                "own: pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)"
            )
        for driver in self.runs.drivers.values():
            _controls[id(unwrapped(driver.model))] = self
            self._undo.callback(_controls.pop, id(unwrapped(driver.model)), None)
            before = driver.model.register_forward_pre_hook(
                ForwardHook(driver.before), with_kwargs=True
            )
            self._undo.callback(before.remove)
            after = driver.model.register_forward_hook(
                ForwardHook(driver.after), with_kwargs=True, always_call=True
            )
            self._undo.callback(after.remove)
        if scheduler is not None:
            self._undo.callback(shadow_scheduler(scheduler, self.runs))
        self._undo.callback(self.runs.prompts.install())

    def _leave(self) -> None:
        for placed in self._slots.values():
            placed.restore()
        self._slots.clear()
        self._undo.close()

    def _fill_slots(self, planner: Planner) -> None:
        wanted = {(site.denoiser, site.path): site for site in planner.selected}
        fresh: list[tuple[str, str]] = []
        try:
            for key in wanted:
                if key not in self._slots:
                    self._slots[key] = self._place(*key)
                    fresh.append(key)
        except BaseException:
            for key in fresh:
                self._slots.pop(key).restore()
            raise
        for key in [key for key in self._slots if key not in wanted]:
            self._slots.pop(key).restore()

    def _place(self, denoiser: str, path: str) -> ProcessorSlot:
        module = unwrapped(self._denoisers[denoiser]).get_submodule(path)
        return ProcessorSlot(module, tap(self.runs.drivers[denoiser], path, module.processor))

    def rebase(self) -> None:
        """Accept processors that were replaced from outside, and control them again."""
        self.runs.end()
        for key, placed in list(self._slots.items()):
            if not placed.is_in_place:
                self._slots[key] = self._place(*key)

    def _refuse_foreign_processors(self) -> None:
        foreign = [path for (_, path), placed in self._slots.items() if not placed.is_in_place]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise ForeignProcessorError(
                f"the processor of {foreign[0]}{more} was replaced while techniques were attached "
                "(by set_attn_processor, load_ip_adapter or similar); call session.rebase() to "
                "control the new ones, or detach first"
            )


def _refuse_doubles(techniques: Sequence[Technique]) -> None:
    """Refuse a technique that is attached twice; some may be, with different settings."""
    for place, technique in enumerate(techniques):
        same = [other for other in techniques[:place] if other.name == technique.name]
        if not same or (technique.can_repeat and technique not in same):
            continue
        raise AlreadyAttachedError(
            f"technique {technique.name!r} is attached twice"
            f"{' with equal settings' if technique.can_repeat else ''}; detach the session that "
            "has it, or give one technique all its settings"
        )
