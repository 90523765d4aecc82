"""CFG-Zero*: guidance whose unconditional branch is scaled to fit, and that waits at first."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from attnctl.calls import PredictionCall
from attnctl.errors import SettingError
from attnctl.ops.guidance import classifier_free, optimal_scale
from attnctl.registry import register
from attnctl.technique import Technique


@register("cfg-zero-star")
@dataclass(frozen=True)
class CFGZeroStar(Technique):
    """Scale the unconditional prediction to fit the conditional one, and skip the first steps.

    It replaces the pipeline's formula by ``a u + s (c - a u)`` with ``a = <c, u> / |u|^2`` for
    each picture, and by zero in the first steps, where a velocity is least reliable. It was made
    for flow models (SD3, FLUX, Wan); elsewhere, where the model predicts noise, a prediction of
    zero means "no noise", so use ``zero_steps=0`` there.

    Attributes:
        zero_steps: First steps of the run whose guided prediction is zero; terms of other
            techniques, such as SoftPAG, are still added to it. From 0, which scales alone.
        where: No effect: the whole prediction is edited, not attention.
    """

    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})
    reference: ClassVar[str] = "Fan et al., 2025, arXiv 2503.18886"

    zero_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.zero_steps
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(
                f"{self.name}: zero_steps={value!r} must be a whole number of steps from 0"
            )

    def edit_prediction(self, call: PredictionCall) -> None:
        cond, uncond = call.get("cond").float(), call.get("uncond").float()
        if call.step.index < self.zero_steps:
            call.own(torch.zeros_like(cond))
            return
        fitted = optimal_scale(cond, uncond) * uncond
        call.own(classifier_free(cond, fitted, call.guidance_scale))
