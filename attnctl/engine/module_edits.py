"""Techniques at modules of a denoiser: arguments edited, outputs edited, blocks skipped.

A module's ``forward`` is replaced on the one instance for the length of one forward of the
denoiser, and only where a technique acts in that forward.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnctl.engine.added import rows_alone
from attnctl.engine.arguments import named_arguments
from attnctl.engine.hooks import replaced_forward
from attnctl.engine.module_plans import ModuleLink, refuse_compiled
from attnctl.engine.replay import fold_of, leading_rows
from attnctl.engine.roles import Rows, Step
from attnctl.errors import UnsupportedModelError
from attnctl.sites import unwrapped

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver


@dataclass(slots=True)
class ModuleCall:
    """One call of a hooked module.

    Replace entries of ``arguments`` (before the module) or ``output`` (behind it) to edit them,
    never change a tensor in place. Batch axes are rows times fold, rows slowest. ``strength``,
    ``state`` and ``owner`` are those of the technique whose method is running; ``module`` is for
    its weights, do not call it.
    """

    path: str
    step: Step
    rows: Rows
    arguments: dict[str, Any]
    output: Any = None
    strength: float = 1.0
    state: Any = None
    owner: str = ""
    module: Any = None

    def pick(
        self,
        tensor: Tensor,
        kind: str | None = None,
        branch: str | None = None,
        item: int | None = None,
    ) -> Tensor:
        """Indices on axis 0 of ``tensor`` that belong to the rows that fit."""
        fold = max(1, tensor.shape[0] // len(self.rows))
        chosen = [
            r * fold + f
            for r, row in enumerate(self.rows)
            if row.fits(self.owner, kind)
            and (branch is None or row.branch == branch)
            and (item is None or row.item == item)
            for f in range(fold)
        ]
        return torch.tensor(chosen, dtype=torch.long, device=tensor.device)


def install_module_edits(driver: "DenoiserDriver") -> Callable[[], None]:
    """Put the module hooks of the forward that comes next in force; return what takes them off.

    Raises:
        CompiledModelError: the model is compiled and would ignore them.
    """
    step, pass_ = driver.step, driver.pass_
    plans = driver.planner.modules.plans(driver.name, step.index, step.total, pass_)
    if plans:
        refuse_compiled(driver.model, driver.planner.modules.labels_at(driver.name))
    with ExitStack() as stack:
        for path, links in plans.items():
            module = unwrapped(driver.model).get_submodule(path)
            edited = _EditedModule(driver, path, module, links)
            stack.enter_context(replaced_forward(module, edited))
        return stack.pop_all().close


class _EditedModule:
    """Stands in for the ``forward`` of one module."""

    def __init__(
        self, driver: "DenoiserDriver", path: str, module: nn.Module, links: Sequence[ModuleLink]
    ) -> None:
        self._driver, self._path, self._module, self._links = driver, path, module, links
        self._inner = module.forward
        self._signature = inspect.signature(type(module).forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        driver, started = self._driver, perf_counter()
        arguments = named_arguments(self._signature, self._module, args, kwargs)
        rows = driver.pass_.rows
        call = ModuleCall(self._path, driver.step, rows, arguments, module=self._module)
        self._edit(call, "before")
        paused = perf_counter()
        if self._is_skipped_by_all(call):
            streams = [call.arguments[name] for name in self._streams]
            call.output = streams[0] if len(streams) == 1 else tuple(streams)
        else:
            self._run(call)
        inside = perf_counter() - paused
        self._edit(call, "after")
        self._record(perf_counter() - started - inside)
        return call.output

    def _edit(self, call: ModuleCall, when: str) -> None:
        for link in self._links:
            if link.hook.when == when:
                call.strength, call.owner = link.strength, link.label
                call.state = self._driver.state_of(link.technique)
                getattr(link.technique, link.hook.method)(call)

    @property
    def _streams(self) -> tuple[str, ...]:
        return next((k.hook.streams for k in self._links if k.hook.streams), ())

    def _is_skipped_by_all(self, call: ModuleCall) -> bool:
        """Whether no row needs the module; it must be known what it would return."""
        return bool(self._streams) and len(self._skipped(call)) == len(call.rows)

    def _skipped(self, call: ModuleCall) -> list[int]:
        skips = [link for link in self._links if link.hook.when == "skip"]
        return [
            place
            for place, row in enumerate(call.rows)
            if any(
                row.fits(link.label, link.hook.kind or link.technique.edits_rows) for link in skips
            )
        ]

    def _run(self, call: ModuleCall) -> None:
        """Run the module; rows that skip it and come last are spared."""
        rows, skipped = len(call.rows), self._skipped(call)
        kept = rows - len(skipped)
        fold = fold_of(call.arguments.get("hidden_states"), rows)
        if not self._streams or fold is None or not skipped or skipped[0] != kept:
            call.output = self._inner(**call.arguments)
            self._give_inputs_back(call)
            return
        with rows_alone(self._driver, call.rows[:kept]):
            output = self._inner(**leading_rows(call.arguments, rows, kept, fold))
        is_single = isinstance(output, Tensor)
        streams = [
            _followed_by(part, call.arguments[name][kept * fold :])
            for name, part in zip(self._streams, [output] if is_single else output, strict=True)
        ]
        call.output = streams[0] if is_single else type(output)(streams)

    def _give_inputs_back(self, call: ModuleCall) -> None:
        """Let the skipped rows of every output stream be those of its input."""
        skipped = self._skipped(call)
        if not skipped:
            return
        is_single = isinstance(call.output, Tensor)
        outputs = [call.output] if is_single else list(call.output)
        streams = self._streams or ("hidden_states",)
        if len(streams) != len(outputs) or any(name not in call.arguments for name in streams):
            raise UnsupportedModelError(
                f"{self._driver.name}.{self._path} ({type(self._module).__name__}) returns "
                f"{len(outputs)} values for {tuple(call.arguments)}; which of these they continue "
                "is not known. Describe its family with BlockList(..., streams=(...))"
            )
        merged = [
            _rows_from(out, call.arguments[name], skipped, len(call.rows))
            for name, out in zip(streams, outputs, strict=True)
        ]
        call.output = merged[0] if is_single else type(call.output)(merged)

    def _record(self, seconds: float) -> None:
        for link in self._links:
            self._driver.report.record(
                self._driver.step.index,
                self._driver.pass_.kind,
                f"{self._driver.name}.{self._path}",
                (link.label,),
                link.hook.method or link.hook.when,
                seconds / len(self._links),
            )


def _followed_by(out: Any, given: Tensor) -> Any:
    """``out`` with the rows ``given`` behind it; a stream that has ended stays ``None``."""
    return None if out is None else torch.cat([out, given.to(out)])


def _rows_from(out: Any, given: Any, chosen: Sequence[int], rows: int) -> Any:
    """``out`` with the rows ``chosen`` of ``given``; a stream that has ended stays ``None``."""
    if out is None or given is None:
        return out
    index = torch.tensor(chosen, device=out.device)
    merged = out.unflatten(0, (rows, -1)).index_copy(
        0, index, given.to(out).unflatten(0, (rows, -1))[index]
    )
    return merged.flatten(0, 1)
