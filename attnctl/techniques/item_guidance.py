"""A guidance scale of its own for every item of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import InputsCall, PredictionCall, RunStart
from attnctl.errors import SettingError
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.technique import Technique


@register("item-guidance")
@dataclass(frozen=True)
class ItemGuidance(Technique):
    """Guide each item of the batch with a scale of its own, such as source 1 and edit 7.5.

    Where the denoiser is told its scale (FLUX.1-dev), it is told one for each item; elsewhere the
    branches are joined with it, as ``u + s (c - u)``. The pipeline's own scale must be above 1
    there, so that both branches are computed.

    Attributes:
        scales: One scale for each item, from 0; empty: it does nothing.
        where: No effect: guidance is edited, not attention.
    """

    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})

    scales: Sequence[float] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.scales
        scales = tuple(given) if isinstance(given, Sequence) else (given,)
        for scale in scales:
            check_number(self.name, "scales", scale, at_least=0)
        object.__setattr__(self, "scales", tuple(float(scale) for scale in scales))

    def strength_at(self, index: int, total: int | None) -> float:
        return super().strength_at(index, total) if self.scales else 0.0

    def begin(self, run: RunStart) -> Callable[[str], None]:
        if self.scales and len(self.scales) != run.items:
            raise SettingError(
                f"{self.name}: {len(self.scales)} scales for {run.items} items; give one each"
            )
        return run.warn

    def edit_inputs(self, call: InputsCall) -> None:
        told = call.arguments.get("guidance")
        if isinstance(told, Tensor):
            scales = [self.scales[row.item] for row in call.rows]
            call.arguments["guidance"] = torch.tensor(scales).to(told)
        elif len({row.branch for row in call.rows}) == 1:
            call.state(
                f"{self.name}: no effect where the denoiser is given one branch and is not told "
                "its guidance; call the pipeline with a guidance scale above 1"
            )

    def edit_prediction(self, call: PredictionCall) -> None:
        if not call.has("uncond"):
            return
        cond, uncond = call.get("cond").float(), call.get("uncond").float()
        scales = torch.tensor(self.scales, device=cond.device)
        scales = scales.view(-1, *[1] * (cond.dim() - 1))
        call.own(uncond + scales * (cond - uncond))
