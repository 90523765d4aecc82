"""Adaptive projected guidance: strong guidance without burnt colours."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from attnctl.calls import PredictionCall, RunStart
from attnctl.ops.guidance import project_difference
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.technique import Technique


@dataclass(slots=True)
class Average:
    """Running sum of guidance differences, each later one weighted by the momentum once more."""

    value: Tensor | None = field(default=None)

    def update(self, difference: Tensor, momentum: float) -> Tensor:
        """Take one difference ``(items, ...)`` in, and give the sum."""
        self.value = difference if self.value is None else difference + momentum * self.value
        return self.value


@register("apg")
@dataclass(frozen=True)
class APG(Technique):
    """Limit the difference between the guidance branches, and weaken what only adds contrast.

    The part of ``cond - uncond`` that is parallel to the conditional prediction mostly raises
    contrast and saturation; the orthogonal part carries the content. The result replaces the
    pipeline's formula: ``uncond + s D'`` with the pipeline's own guidance scale ``s``.

    Attributes:
        eta: Weight of the parallel part, from 0 (the paper's choice) to 1, which keeps it.
        norm_threshold: Largest norm of the difference of one picture, over all its latents; 0 sets
            no limit. It grows with the picture's size. ``eta=1``, no limit and no momentum are
            classifier-free guidance.
        momentum: Weight of the earlier differences in a running sum, in [-1, 1]; negative values
            push away from the direction taken so far, 0 uses each difference alone.
        where: No effect: the whole prediction is edited, not attention.
    """

    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})
    reference: ClassVar[str] = "Sadat et al., ICLR 2025, arXiv 2410.02416"

    eta: float = 1.0
    norm_threshold: float = 15.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "eta", self.eta, at_least=0, at_most=1)
        check_number(self.name, "norm_threshold", self.norm_threshold, at_least=0)
        check_number(self.name, "momentum", self.momentum, at_least=-1, at_most=1)

    def begin(self, run: RunStart) -> Average:
        return Average()

    def edit_prediction(self, call: PredictionCall) -> None:
        cond, uncond = call.get("cond").float(), call.get("uncond").float()
        difference = cond - uncond
        if self.momentum:
            difference = call.state.update(difference, self.momentum)
        projected = project_difference(difference, cond, self.eta, self.norm_threshold)
        call.own(uncond + call.guidance_scale * projected)
