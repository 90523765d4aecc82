"""Drive one denoiser: what happens before and after each of its forwards."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnctl.calls import InputsCall, Pass, PassKind, PredictionCall, Rows, Step
from attnctl.engine.added import AddedRows, warn_without_effect, with_own_arguments
from attnctl.engine.arguments import Arguments
from attnctl.engine.cache import SiteCache
from attnctl.engine.chain import ProcessorCall
from attnctl.engine.hooks import do_nothing
from attnctl.engine.joining import joined_prediction, refuse_guidance
from attnctl.engine.latents import latents_phase
from attnctl.engine.links import SiteExecution, StopForward
from attnctl.engine.module_edits import install_module_edits
from attnctl.engine.other_prompts import KeysMaker, encoded, keys_makers
from attnctl.engine.outputs import prediction_of, with_other_channels, with_prediction
from attnctl.engine.pipeline_guidance import read_guidance
from attnctl.engine.planner import Planner
from attnctl.engine.replay import Replay
from attnctl.engine.rows import (
    branches_of_known_items,
    guess_branches,
    rows_of_call,
    whole_items,
)
from attnctl.engine.run import Run
from attnctl.engine.site_plans import SitePlan
from attnctl.errors import NotANumberError
from attnctl.families import Family
from attnctl.report import Report
from attnctl.sites import is_compiled, unwrapped
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.engine.runs import Runs


class DenoiserDriver:
    """Hooks of one denoiser, and the gate of its taps.

    Attributes:
        active: Plans of the sites that are not idle in the forward that runs.
        keys_of: Makes keys of a technique's other prompt at cross-attention sites, by label.
        probe: Is shown each call of an active site first; may stop the forward.
        arguments: How the denoiser is called.
        cache: What techniques keep at sites in the run of the latest forward.
    """

    def __init__(self, name: str, model: nn.Module, family: Family, runs: "Runs") -> None:
        self.name, self.model, self.family = name, model, family
        self.active: dict[str, SitePlan] = {}
        self.keys_of: dict[str, KeysMaker] = {}
        self.probe: Callable[[ProcessorCall], None] | None = None
        self.step = Step(0, None)
        self.pass_ = Pass("main", 0, ())
        self._runs = runs
        self.cache: SiteCache | None = None
        self._is_ours = False
        self._awaited: set[str] | None = None
        self.arguments = Arguments(model, family)
        self._call: _Call | None = None
        self._added: AddedRows | None = None
        self._remove_module_edits: Callable[[], None] = do_nothing

    # --- the gate -------------------------------------------------------------------------

    def control(self, path: str, given: ProcessorCall) -> SiteExecution:
        """The handler of one call of an active site."""
        if self.probe is not None:
            self.probe(given)
        return SiteExecution(self, self.active[path], given)

    @property
    def runs(self) -> "Runs":
        """The pipeline's runs."""
        return self._runs

    @property
    def kernel(self) -> str:
        """Kernel that the user forces at controlled sites, or ``"auto"``."""
        return self._runs.kernel

    @property
    def planner(self) -> Planner:
        """Plan of everything that is attached."""
        return self._runs.planner

    @property
    def report(self) -> Report:
        """Report of the run that is open."""
        return self._runs.report

    def state_of(self, technique: Technique) -> Any:
        """What a technique keeps in this run."""
        return self._runs.state_of(technique)

    def on_site_done(self, path: str) -> None:
        """Stop a gradient forward once everything that a loss reads has been seen."""
        if self._awaited is not None:
            self._awaited.discard(path)
            if not self._awaited:
                raise StopForward

    # --- the pipeline's own forwards --------------------------------------------------------

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook: open the step, move latents, edit inputs, add rows, set the plan."""
        if self._is_ours:
            return None
        inputs = self.arguments.bind(args, kwargs)
        run = self._run_of(inputs)
        timestep = run.scaling.timestep if run.scaling else inputs.get("timestep", 0)
        step = run.clock.on_denoiser_call(timestep)
        rows = self._rows(run, inputs)
        self.step, self._call, self.cache = step, None, run.cache
        self.close()
        if self._runs.begin(run, self, inputs):
            refuse_guidance(self, read_guidance(self._runs.pipe), rows)
        active = self.planner.active(step.index, step.total)
        if not active and run.moved is None:
            return None
        self.keys_of = keys_makers(self, run, active, inputs, rows)
        changed = False
        added = self.planner.added_rows(self.name, step) if run.clock.calls == 0 else ()
        if added or run.moved is not None or any(map(_touches_latents, active)):
            latents, channels = self.arguments.own_latents(
                run.scaling, inputs, len({row.item for row in rows})
            )
            changed = self._move_latents(run, active, inputs, rows, latents)
            latents = latents if run.moved is None else run.moved
            encode = partial(encoded, self, run)
            call = InputsCall(step, rows, inputs, latents, encode)
            changed |= self._edit_inputs(active, call)
            if added:
                added = with_own_arguments(self, run, added, active, call)
                self._added = AddedRows(self, added, rows, inputs, self._replay())
                inputs, rows, changed = self._added.inputs, self._added.rows, True
            self._call = _Call(rows, channels, latents)
        self.pass_ = Pass("main", run.clock.calls, rows)
        self.active = self.planner.plans(self.name, step.index, step.total, self.pass_)
        self._remove_module_edits = install_module_edits(self)
        return ((), inputs) if changed else None

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook: edit the prediction and take added rows off; ``None`` after an error."""
        if self._is_ours:
            return None
        self.close()
        if output is None:
            self._runs.end()
            return None
        call, self._call = self._call, None
        if call is None:
            return None
        return self._edit_prediction(self._runs.run_for(self), call, output)

    def _run_of(self, inputs: Mapping[str, Any]) -> Run:
        """The run that is open; on a bare denoiser other sizes begin another one."""
        run = self._runs.run_for(self)
        if self._runs.pipe is not None:
            return run
        sizes = {name: v.shape for name, v in inputs.items() if isinstance(v, Tensor)}
        if run.has_begun and run.sizes != sizes:
            self._runs.end()
            run = self._runs.run_for(self)
        run.sizes = sizes
        return run

    def _rows(self, run: Run, inputs: Mapping[str, Any]) -> Rows:
        latents = inputs.get(self.arguments.latents_name(inputs))
        text = inputs.get("encoder_hidden_states")
        rows = 1 if latents is None else len(latents)
        pipe, chosen, call = self._runs.pipe, self._runs.branches, run.clock.calls
        if run.items is None:
            branches = guess_branches(self.family, pipe, chosen, latents, text, call)
            run.items = whole_items(rows, branches)
        else:
            branches = branches_of_known_items(self.family, pipe, chosen, rows, run.items, call)
        run.see(latents, rows)
        return rows_of_call(branches, run.items, is_weaker=self.family.weaker_calls and call > 0)

    def _move_latents(
        self,
        run: Run,
        active: tuple[Technique, ...],
        inputs: dict[str, Any],
        rows: Rows,
        latents: Tensor,
    ) -> bool:
        movers = tuple(t for t in active if t.has_loss_at(self.step.index, self.step.total))
        if movers and run.clock.calls == 0 and self.step.stage == 0:
            moved = latents_phase(self, run, movers, inputs, rows, latents)
            run.moved = moved if moved is not None else run.moved
        if run.moved is None:
            return False
        repeats = len(rows) // len({row.item for row in rows})
        name = self.arguments.latents_name(inputs)
        inputs[name] = self.arguments.with_latents(run.scaling, inputs, run.moved, repeats)
        return True

    def _edit_inputs(self, active: tuple[Technique, ...], call: InputsCall) -> bool:
        editors = [t for t in active if t.overrides("edit_inputs")]
        for technique in editors:
            call.strength = technique.strength_at(self.step.index, self.step.total)
            call.state = self.state_of(technique)
            technique.edit_inputs(call)
        return bool(editors)

    def _edit_prediction(self, run: Run, made: "_Call", output: Any) -> Any:
        rows, channels, latents = made.rows, made.channels, made.latents
        active = self.planner.active(self.step.index, self.step.total)
        editors = [t for t in active if t.overrides("edit_prediction")]
        has_added = any(row.is_added for row in rows)
        if not editors and not has_added and run.kept is None:
            return None
        whole = prediction_of(output)
        axis = self.family.channels_axis
        own = whole.narrow(axis, 0, min(channels, whole.shape[axis]))
        guidance = read_guidance(self._runs.pipe)
        call = PredictionCall(self.step, rows, own, latents, guidance=guidance)
        if run.clock.calls == 0:
            warn_without_effect(self.report, call)
        edited = joined_prediction(self, run, call, editors)
        self._check_finite(own, edited, editors)
        return with_prediction(output, with_other_channels(whole, edited, axis), len(rows))

    def _check_finite(self, before: Tensor, after: Tensor, editors: list[Technique]) -> None:
        if not torch.isfinite(after).all() and torch.isfinite(before).all():
            names = ", ".join(repr(t.name) for t in editors)
            raise NotANumberError(
                f"the prediction is not finite after {names} at step {self.step.index} of "
                f"{self.name}; lower the scale, or use a wider dtype"
            )

    # --- our own forwards -------------------------------------------------------------------

    def _replay(self) -> Replay | None:
        """Replay of the blocks before the first perturbed site; ``None``: one batch is better."""
        paths = self.planner.added_sites(self.name, self.step.index, self.step.total)
        if paths is None or is_compiled(self.model):
            return None
        replay = Replay(unwrapped(self.model), self.family.blocks, paths)
        return replay if replay.is_worthwhile else None

    def close(self) -> None:
        """Take off what stands in the model for the length of a forward, also after an error."""
        self.active = {}
        self._remove_module_edits()
        if self._added is not None:
            self._added.close()
            self._added = None

    @contextmanager
    def open_pass(
        self, kind: PassKind, rows: Rows, awaited: frozenset[str] | None
    ) -> Generator[Callable[[dict[str, Any]], Any]]:
        """Give a function that runs one forward of ours; the plan stays in force in the block."""
        before, step = (self.pass_, self.active, self._is_ours, self._awaited), self.step
        self.pass_ = Pass(kind, 0, rows)
        self.active = self.planner.plans(self.name, step.index, step.total, self.pass_)
        self._is_ours = True

        def forward(inputs: dict[str, Any]) -> Any:
            self._awaited = None if awaited is None else set(awaited)
            try:
                return self.model.forward(**inputs)
            except StopForward:
                return None
            finally:
                self._awaited = None

        try:
            remove = install_module_edits(self)
            try:
                yield forward
            finally:
                remove()
        finally:
            self.pass_, self.active, self._is_ours, self._awaited = before


@dataclass(frozen=True, slots=True)
class _Call:
    """What the forward hook needs of the call that the pre-hook prepared."""

    rows: Rows
    channels: int
    latents: Tensor


def _touches_latents(technique: Technique) -> bool:
    return any(technique.overrides(m) for m in ("loss", "edit_inputs", "edit_prediction"))
