"""RF-Inversion's reverse control: the velocity of a flow model is pulled towards a source."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from attnctl.calls import PredictionCall, RunStart
from attnctl.errors import FeatureError, UnsupportedModelError
from attnctl.ops.inversion import controlled_velocity
from attnctl.registry import register
from attnctl.schedule import Schedule
from attnctl.settings import check_number
from attnctl.technique import Technique
from attnctl.techniques.trajectory_replay import check_item, refuse_missing_item

if TYPE_CHECKING:
    from attnctl.inversion import Inversion


@register("rf-control")
@dataclass(frozen=True)
class RFControl(Technique):
    """Pull a flow model's velocity towards the one that leads straight to the source's latents.

    ``v' = v + eta (v* - v)`` with ``v* = (x - source) / s`` at noise level ``s``. With ``eta=1``
    all the way, every picture ends at the source. The same affine map goes to every guidance
    branch, so guidance passes it unchanged. ``attnctl.pipelines.edit`` fills the source in.

    Attributes:
        source_latents: Clean latents of the source, ``(1, ...)`` or one for each item; ``None``:
            the edit pipeline fills them in.
        eta: Pull, unitless, in [0, 1]; larger keeps more of the source.
        decay: The pull falls as ``(1 - index / total)^decay`` over the run; 0 keeps it constant.
        items: Items that are pulled; empty: all.
        steps: When it acts; RF-Inversion's authors stop after a quarter of the run.
        where: No effect: the prediction is edited, not attention.
    """

    reference: ClassVar[str] = "Rout et al., ICLR 2025, arXiv 2410.10792"
    families: ClassVar[str] = "flow models whose denoiser predicts noise - clean: SD3, FLUX"
    no_settings: ClassVar[frozenset[str]] = frozenset({"source_latents"})

    source_latents: Tensor | None = field(default=None, repr=False, compare=False)
    eta: float = 0.9
    decay: float = 0.0
    items: tuple[int, ...] = ()
    steps: Schedule = field(default=Schedule.parse("0-25%"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "eta", self.eta, at_least=0, at_most=1)
        check_number(self.name, "decay", self.decay, at_least=0)
        items = (self.items,) if isinstance(self.items, int) else tuple(self.items)
        for item in items:
            check_item(self.name, "items", item)
        object.__setattr__(self, "items", items)

    def strength_at(self, index: int, total: int | None) -> float:
        return super().strength_at(index, total) if self.eta else 0.0

    def with_inversion(self, inversion: "Inversion") -> "RFControl":
        """The same settings for the source of an inversion."""
        return replace(self, source_latents=inversion.clean)

    def begin(self, run: RunStart) -> Tensor:
        if run.fingerprint().prediction != "flow":
            raise UnsupportedModelError(
                f"{self.name} is for flow models (SD3, FLUX), and this model predicts "
                f"{run.fingerprint().prediction!r}; use TrajectoryReplay with it"
            )
        if self.source_latents is None:
            raise FeatureError(
                f"{self.name} has no source; give source_latents=attnctl.inversion.invert(...)"
                ".clean, or use attnctl.pipelines.edit, which does"
            )
        for item in self.items:
            refuse_missing_item(self.name, "items", item, run.items)
        return self.source_latents

    def edit_prediction(self, call: PredictionCall) -> None:
        source: Tensor = call.state
        level = call.step.timestep / 1000
        share = (1 - call.step.fraction) ** self.decay if self.decay else 1.0
        eta = torch.zeros(len(call.latents), device=call.latents.device)
        eta[list(self.items) or slice(None)] = self.eta * share * call.strength
        goal = source.to(call.latents.device)
        call.map(lambda v: controlled_velocity(v, call.latents, goal, level, eta).to(v))
