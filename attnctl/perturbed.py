"""Guidance away from a perturbed copy of the conditional prediction, for several techniques."""

from dataclasses import dataclass
from typing import ClassVar

from attnctl.calls import AddedRow, Needs, PredictionCall
from attnctl.settings import check_number
from attnctl.technique import Technique

PERTURBED = "perturbed"


@dataclass(frozen=True)
class PerturbedGuidance(Technique):
    """Base of techniques that perturb an added row and add ``scale (cond - perturbed)``.

    The rows are the technique's own, so the terms of several simply add up.

    Attributes:
        scale: Weight of the guidance, unitless; 0 is off.
    """

    edits_rows: ClassVar[str | None] = PERTURBED
    can_repeat: ClassVar[bool] = True

    scale: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "scale", self.scale, at_least=0)

    def needs(self) -> Needs:
        """One added row beside each conditional one."""
        return Needs(rows=(AddedRow(PERTURBED),))

    @property
    def perturbs(self) -> bool:
        """Whether the settings perturb anything at all."""
        return True

    def strength_at(self, index: int, total: int | None) -> float:
        """How strongly it acts at a step; 0 if its settings switch it off."""
        if self.scale == 0 or not self.perturbs:
            return 0.0
        return self.steps.strength(index, total)

    def edit_prediction(self, call: PredictionCall) -> None:
        """Add ``scale (cond - perturbed)`` to the guided prediction."""
        if not call.has("cond", PERTURBED):
            return
        away = call.get("cond").float() - call.get("cond", PERTURBED).float()
        call.add(call.strength * self.scale * away)
