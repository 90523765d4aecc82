"""The latents phase: gradients of attention losses, and steps against them, before the forward."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attnctl.calls import Rows
from attnctl.engine.outputs import prediction_of
from attnctl.engine.rows import take_rows
from attnctl.engine.run import GradientFacts, ParameterSlot, Run
from attnctl.errors import GradientError
from attnctl.report import LossEntry
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver

# A gradient that underflows in fp16 is found again by scaling the loss; the first scale that
# keeps every value finite is used.
HALF_LOSS_SCALES = (4096.0, 64.0, 1.0)
MAX_EVALUATIONS = 200


def latents_phase(
    driver: "DenoiserDriver",
    run: Run,
    movers: Sequence[Technique],
    inputs: Mapping[str, Any],
    rows: Rows,
    latents: Tensor,
) -> Tensor | None:
    """Move latents against the summed losses of ``movers``.

    Each evaluation is one forward over the rows that the losses read, stopped after the last
    attention that they read, and one backward of ``sum size * loss``. The user's generators, the
    scheduler and the clock are untouched.

    Args:
        driver: The denoiser.
        run: The run that is open.
        movers: Active techniques with a loss.
        inputs: The denoiser's arguments of this call.
        rows: Their rows.
        latents: Unscaled latents, ``(items, ...)``.

    Returns:
        Moved latents, or ``None`` if nothing moved.

    Raises:
        GradientError: called under ``torch.inference_mode``.
    """
    _refuse_inference_mode(movers)
    branches = {r.branch or "cond" for t in movers for r in t.needs().reads if r.grad} or {"cond"}
    chosen = [i for i, row in enumerate(rows) if row.branch in branches and row.kind == "main"]
    if not chosen:
        return None
    arguments = take_rows(inputs, driver.family.batched, len(rows), chosen)
    own_rows = tuple(rows[i] for i in chosen)
    phase = _Phase(driver, run, arguments, own_rows, movers)
    with _frozen(_facts(driver, run).trainable):
        return phase.run(latents)


class _Phase:
    def __init__(
        self,
        driver: "DenoiserDriver",
        run: Run,
        arguments: dict[str, Any],
        rows: Rows,
        movers: Sequence[Technique],
    ) -> None:
        self._driver, self._run_state = driver, run
        self._arguments, self._rows = arguments, rows
        self._movers = list(movers)
        self._branches = len({row.branch for row in rows})
        self._is_checkpointing = _facts(driver, run).is_checkpointing

    def run(self, latents: Tensor) -> Tensor | None:
        """Evaluate and move until no technique wants another evaluation."""
        now, has_moved = latents.detach(), False
        pending = self._movers
        for evaluation in range(MAX_EVALUATIONS):
            step, pending = self._evaluate(now, pending, evaluation)
            if step is not None:
                now, has_moved = (now.float() - step.float()).to(latents.dtype), True
            if not pending:
                return now if has_moved else None
        self._warn(f"stopped after {MAX_EVALUATIONS} evaluations", pending)
        return now if has_moved else None

    def _warn(self, what: str, techniques: Sequence[Technique]) -> None:
        names = ", ".join(technique.name for technique in techniques)
        self._driver.report.warn(f"step {self._driver.step.index}: {names} {what}")

    def _evaluate(
        self, latents: Tensor, pending: list[Technique], evaluation: int
    ) -> tuple[Tensor | None, list[Technique]]:
        """One forward and backward: the step to subtract, and who wants another evaluation."""
        driver, step = self._driver, self._driver.step
        with (
            torch.enable_grad(),
            driver.open_pass("gradient", self._rows, self._awaited(pending)) as forward,
        ):
            leaf = latents.detach().float().requires_grad_(True)
            inputs = dict(self._arguments)
            name = driver.arguments.latents_name(inputs)
            inputs[name] = driver.arguments.with_latents(
                self._run_state.scaling, inputs, leaf.to(latents.dtype), self._branches
            )
            self._show(pending, forward(inputs), leaf)
            total, again, turn = None, list[Technique](), None
            for technique in pending:
                state = driver.state_of(technique)
                loss = technique.loss(state, step)
                move = technique.move(state, step, evaluation, loss.detach())
                self._note(technique, evaluation, loss.detach(), move.note)
                turn = move.turn
                if move.again:
                    again.append(technique)
                weighted = _weighted(move.size, loss)
                if weighted is not None:
                    total = weighted if total is None else total + weighted
            if total is None or not total.requires_grad:
                return None, again
            gradient = _gradient(total, leaf, latents.dtype)
        cleaned, again = self._cleaned(gradient, again)
        return cleaned if cleaned is None or turn is None else turn(cleaned), again

    def _show(self, pending: list[Technique], output: Any, latents: Tensor) -> None:
        """Hand the prediction of the conditional rows to the techniques that look at it."""
        driver = self._driver
        lookers = [t for t in pending if t.needs().gradient_to == "end"]
        if not lookers:
            return
        axis = driver.family.channels_axis
        whole = prediction_of(output)[[row.branch == "cond" for row in self._rows]]
        prediction = whole.narrow(axis, 0, min(latents.shape[axis], whole.shape[axis]))
        for technique in lookers:
            technique.read_prediction(driver.state_of(technique), prediction, latents)

    def _awaited(self, pending: list[Technique]) -> frozenset[str] | None:
        """Sites after which the forward may stop; ``None`` if it must run to its end."""
        driver = self._driver
        if any(t.needs().gradient_to == "end" for t in pending):
            return None
        if self._is_checkpointing:
            return None  # the backward runs these sites again
        sites = (driver.planner.gradient_sites(driver.name, t) for t in pending)
        return frozenset[str]().union(*sites)

    def _cleaned(
        self, gradient: Tensor, again: list[Technique]
    ) -> tuple[Tensor | None, list[Technique]]:
        """Leave items alone whose gradient is not finite; stop iterating then, and if it is 0."""
        finite = torch.isfinite(gradient.flatten(1)).all(dim=1)
        if bool(finite.all()):
            if bool(gradient.any()):
                return gradient, again
            self._warn("has a loss whose gradient is zero; nothing was moved", self._movers)
            return None, []
        self._warn(
            f"has a gradient that is not finite for {int((~finite).sum())} of {len(finite)} items, "
            "which were left as they were",
            self._movers,
        )
        keep = finite.view(-1, *[1] * (gradient.dim() - 1))
        return torch.where(keep, gradient, torch.zeros_like(gradient)), []

    def _note(self, technique: Technique, evaluation: int, loss: Tensor, note: str) -> None:
        report, index = self._driver.report, self._driver.step.index
        if note:
            report.warn(note)
        last = report.losses[-1] if report.losses else None
        values = tuple(round(value, 6) for value in loss.flatten().tolist())
        found = next(
            (
                e
                for e in reversed(report.losses[-8:])
                if (e.step, e.technique) == (index, technique.name)
            ),
            None,
        )
        if last is None or found is None:
            report.losses.append(LossEntry(index, technique.name, evaluation + 1, values))
        else:
            found.evaluations, found.losses = evaluation + 1, values


def _weighted(size: float | Tensor, loss: Tensor) -> Tensor | None:
    """``sum size * loss`` over the items, or ``None`` if every size is 0."""
    sizes = torch.as_tensor(size, dtype=torch.float32, device=loss.device).expand(loss.shape)
    moving = sizes != 0
    if not bool(moving.any()):
        return None
    return (sizes[moving] * loss[moving]).sum()


def _gradient(total: Tensor, leaf: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient of ``total``, in fp32; with loss scaling where fp16 would lose it."""
    scales = HALF_LOSS_SCALES if dtype == torch.float16 else (1.0,)
    gradient = torch.zeros_like(leaf)
    for position, scale in enumerate(scales):
        is_last = position == len(scales) - 1
        (found,) = torch.autograd.grad(
            total * scale, leaf, retain_graph=not is_last, materialize_grads=True
        )
        gradient = found.float() / scale
        if bool(torch.isfinite(gradient).all()):
            break
    return gradient


def _refuse_inference_mode(movers: Sequence[Technique]) -> None:
    if torch.is_inference_mode_enabled():
        names = ", ".join(repr(t.name) for t in movers)
        raise GradientError(
            f"{names} needs a gradient, which torch.inference_mode() forbids even inside "
            "enable_grad(); call the pipeline under torch.no_grad() (its own default) instead"
        )


def _facts(driver: "DenoiserDriver", run: Run) -> GradientFacts:
    if driver.name not in run.gradients:
        model = driver.model
        run.gradients[driver.name] = GradientFacts(
            _trainable(model), getattr(model, "is_gradient_checkpointing", False)
        )
    return run.gradients[driver.name]


def _trainable(model: nn.Module) -> list[ParameterSlot]:
    """Where the parameters with a gradient stand; offloading puts other ones in their place."""
    return [
        (module._parameters, name)  # pyright: ignore[reportPrivateUsage]
        for module in model.modules()
        for name, parameter in module._parameters.items()  # pyright: ignore[reportPrivateUsage]
        if parameter is not None and parameter.requires_grad
    ]


@contextmanager
def _frozen(trainable: Sequence[ParameterSlot]) -> Generator[None]:
    """Keep only the activations' graph: parameters need no gradient inside this block."""
    try:
        for parameters, name in trainable:
            _set_gradient(parameters[name], False)
        yield
    finally:
        for parameters, name in trainable:
            _set_gradient(parameters[name], True)


def _set_gradient(parameter: nn.Parameter | None, is_wanted: bool) -> None:
    if parameter is not None:
        parameter.requires_grad_(is_wanted)
