"""Rows of ours beside the pipeline's, in one batch with them."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnctl.calls import AddedRow, InputsCall, PredictionCall, Row, Rows
from attnctl.engine.hooks import do_nothing
from attnctl.engine.other_prompts import with_prompts
from attnctl.engine.replay import Replay
from attnctl.engine.rows import append_rows, take_rows
from attnctl.report import Report
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver
    from attnctl.engine.run import Run

ROUNDING = 2e-6  # of the largest value: what equal rows may differ by in fp32; in half they do not


class AddedRows:
    """Added rows of one denoiser call.

    They share the pipeline's forward; with a :class:`Replay` the blocks before the first that
    treats them differently compute the pipeline's rows alone.

    Attributes:
        rows: The pipeline's rows and, behind them, the added ones.
        inputs: Arguments of the forward of all rows.
    """

    def __init__(
        self,
        driver: "DenoiserDriver",
        added: Sequence[AddedRow],
        rows: Rows,
        inputs: dict[str, Any],
        replay: Replay | None,
    ) -> None:
        self._stop: Callable[[], None] = do_nothing
        for label in dict.fromkeys(row.owner for row in added):
            first = None if replay is None else replay.first
            driver.report.record_added(driver.step.index, label, first)
        self.inputs, self.rows = append_rows(inputs, driver.family.batched, rows, added)
        if replay is not None:
            mine = self.rows[len(rows) :]
            shadowed = [rows.index(Row(row.branch, row.item)) for row in mine]
            self._stop = replay.install(len(rows), shadowed, lambda: rows_alone(driver, rows))

    def close(self) -> None:
        """Give the blocks back, also after an error."""
        self._stop()
        self._stop = do_nothing


def with_own_arguments(
    driver: "DenoiserDriver",
    run: "Run",
    added: Sequence[AddedRow],
    active: Sequence[Technique],
    call: InputsCall,
) -> tuple[AddedRow, ...]:
    """Give added rows with a prompt or latents of their own these as arguments."""
    owners = {driver.planner.label(technique): technique for technique in active}
    name = driver.arguments.latents_name(call.arguments)
    result: list[AddedRow] = []
    for row in with_prompts(driver, run, added, call.arguments, call.rows):
        shadowed = row.shadowed(call.rows)
        if row.other_picture and shadowed:
            technique = owners[row.owner]
            call.strength = technique.strength_at(call.step.index, call.step.total)
            call.state = driver.state_of(technique)
            own = take_rows(call.arguments, driver.family.batched, len(call.rows), shadowed)
            latents = technique.added_latents(call, row.kind)
            scaled = driver.arguments.with_latents(run.scaling, own, latents, 1)
            row = replace(row, arguments={**(row.arguments or {}), name: scaled})
        result.append(row)
    return tuple(result)


@contextmanager
def rows_alone(driver: "DenoiserDriver", rows: Rows) -> Generator[None]:
    """Let ``rows`` be the only ones of the forward inside this ``with`` block."""
    before = driver.pass_
    driver.pass_ = replace(before, rows=rows)
    try:
        yield
    finally:
        driver.pass_ = before


def warn_without_effect(report: Report, call: PredictionCall) -> None:
    """Warn of techniques whose added rows came out equal to the rows that they shadow."""
    groups: dict[str, list[tuple[int, int]]] = {}
    places = {row: place for place, row in enumerate(call.rows)}
    for row, place in places.items():
        if row.kind != "main" and not row.is_other_picture:
            pair = (place, places[Row(row.branch, row.item)])
            groups.setdefault(row.owner, []).append(pair)
    for label, pairs in groups.items():
        added, own = (call.prediction[list(side)].float() for side in zip(*pairs, strict=True))
        if bool((added - own).abs().max() <= ROUNDING * own.abs().max()):
            report.warn(
                f"{label}: its perturbed rows came out equal to those that they shadow, so its "
                "scale has no effect; choose other sites or blocks, or perturb more"
            )
