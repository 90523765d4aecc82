"""Keep what lies outside a mask: latents of the source there, after every step."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import LatentsCall, RunStart
from attnctl.errors import SettingError
from attnctl.technique import Technique
from attnctl.techniques.trajectory_replay import check_item, refuse_missing_item


@dataclass(frozen=True)
class KeepOutside(Technique):
    """Write the source item's latents over those of the target, outside a mask, after each step.

    The mask is the caller's and no plain value, so recipes do not know this technique; the edit
    pipeline attaches it.

    Attributes:
        mask: 1 where the target may differ, 0 where it follows the source; of the shape of one
            item's latents, or broadcastable to it.
        source: Item that is kept.
        target: Item that is written.
        where: No effect: latents are blended, not attention.
    """

    name: ClassVar[str] = "keep-outside"
    claims: ClassVar[frozenset[str]] = frozenset({"overwrite"})
    no_settings: ClassVar[frozenset[str]] = frozenset({"mask"})

    mask: Tensor
    source: int = 0
    target: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_item(self.name, "source", self.source)
        check_item(self.name, "target", self.target)
        if self.source == self.target:
            raise SettingError(f"{self.name}: source and target are both item {self.source}")

    def begin(self, run: RunStart) -> None:
        refuse_missing_item(self.name, "source", self.source, run.items)
        refuse_missing_item(self.name, "target", self.target, run.items)

    def after_step(self, call: LatentsCall) -> Tensor:
        latents = call.latents.clone()
        keep = self.mask.to(latents.device).expand_as(latents[self.target]) == 0
        latents[self.target] = torch.where(keep, latents[self.source], latents[self.target])
        return latents
