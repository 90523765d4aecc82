"""Rows of ours beside the pipeline's: in one batch with them, or replayed after its forward."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.calls import AddedRow, PredictionCall, Row, Rows
from attnctl.outputs import prediction_of
from attnctl.replay import Replay
from attnctl.report import Report
from attnctl.rows import append_rows, take_rows

if TYPE_CHECKING:
    from attnctl.denoiser import DenoiserDriver


class AddedRows:
    """Added rows of one denoiser call.

    With a :class:`Replay` they get a forward of their own, which starts at the first block that
    treats them differently; without one they share the pipeline's forward.

    Attributes:
        rows: The pipeline's rows and, behind them, the added ones.
        inputs: Arguments of the pipeline's forward.
    """

    def __init__(
        self,
        driver: "DenoiserDriver",
        added: Sequence[AddedRow],
        rows: Rows,
        inputs: dict[str, Any],
        replay: Replay | None,
    ) -> None:
        self._driver, self._own, self._replay = driver, rows, replay
        self._stop: Callable[[], None] | None = None
        self._note(added)
        batched = driver.family.batched
        both, self.rows = append_rows(inputs, batched, rows, added)
        if replay is None:
            self.inputs = both
            return
        self.inputs = inputs
        places = range(len(rows), len(self.rows))
        self._arguments = take_rows(both, batched, len(self.rows), places)
        self._shadowed = [rows.index(Row(row.branch, row.item)) for row in self.rows[len(rows) :]]
        self._stop = replay.capture()

    @property
    def forward_rows(self) -> Rows:
        """Rows of the pipeline's forward."""
        return self.rows if self._replay is None else self._own

    def _note(self, added: Sequence[AddedRow]) -> None:
        first = None if self._replay is None else self._replay.first
        for label in dict.fromkeys(row.owner for row in added):
            self._driver.report.record_added(self._driver.step.index, label, first)

    def close(self) -> None:
        """Stop keeping block outputs, also after an error."""
        if self._stop is not None:
            self._stop()
            self._stop = None

    def whole_prediction(self, output: Any) -> Tensor:
        """Prediction of all rows, the added ones behind the pipeline's."""
        prediction = prediction_of(output)
        if self._replay is None:
            return prediction
        self.close()
        driver, mine = self._driver, self.rows[len(self._own) :]
        with (
            driver.open_pass("extra", mine, None) as forward,
            self._replay.play(len(self._own), self._shadowed),
        ):
            extra = prediction_of(forward(self._arguments))
        self._replay.clear()
        return torch.cat([prediction, extra])


def warn_without_effect(report: Report, call: PredictionCall) -> None:
    """Warn of techniques whose added rows came out equal to the rows that they shadow."""
    groups: dict[str, list[tuple[int, int]]] = {}
    places = {row: place for place, row in enumerate(call.rows)}
    for row, place in places.items():
        if row.kind != "main":
            pair = (place, places[Row(row.branch, row.item)])
            groups.setdefault(row.owner, []).append(pair)
    for label, pairs in groups.items():
        added, own = (call.prediction[list(side)].float() for side in zip(*pairs, strict=True))
        rounding = 16 * torch.finfo(call.prediction.dtype).eps * own.abs().max()
        if bool((added - own).abs().max() <= rounding):
            report.warn(
                f"{label}: its perturbed rows came out equal to those that they shadow, so its "
                "scale has no effect; choose other sites or blocks, or perturb more"
            )
