"""A technique with an added row, as plain as can be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from attnctl import AttentionCall, Needs, Technique
from attnctl.calls import AddedRow, PredictionCall


@dataclass(frozen=True)
class Extra(Technique):
    """An added row that is perturbed at chosen sites, or nowhere; keeps what came out."""

    name: ClassVar[str] = "extra"
    is_perturbed: bool = True
    scale: float = 0.0
    seen: list[PredictionCall] = field(default_factory=list[PredictionCall], compare=False)

    def needs(self) -> Needs:
        return Needs(rows=(AddedRow("perturbed"),))

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        at = call.pick(kind="perturbed")
        return out.index_copy(0, at, call.value[at]) if self.is_perturbed else out

    def edit_prediction(self, call: PredictionCall) -> None:
        if not call.has("cond", "perturbed"):
            return
        self.seen.append(call)
        if self.scale:
            call.add(self.scale * self.difference(call))

    @staticmethod
    def difference(call: PredictionCall) -> Tensor:
        return call.get("cond") - call.get("cond", "perturbed")
