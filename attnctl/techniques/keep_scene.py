"""Keep a scene around an object that is pasted into it: latents written after each step."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import LatentsCall, RunStart
from attnctl.editing.trajectories import Trajectory
from attnctl.errors import FeatureError
from attnctl.ops.composition import with_tokens
from attnctl.schedule import Schedule, until
from attnctl.technique import Technique


@dataclass(frozen=True)
class KeepScene(Technique):
    """Write a scene's latents outside a box after each step; at first the object's inside too.

    Trajectories and tokens are no plain values, so recipes do not know this technique;
    ``attnctl.pipelines.compose`` attaches it.

    Attributes:
        background: Latents of the scene at every level, one item.
        subject: Those of the canvas with the object.
        box: Cells that may differ from the scene, bool ``(h, w)``.
        pair: The object's cells on its canvas and in the scene, ``(K,)`` each.
        paste_until: Until this step (int) or fraction of the run (float) the whole picture is the
            scene with the object's own latents; 0: never.
        steps: Steps behind which the scene is written.
        where: No effect: latents are written, not attention.

    Source: composition step of arXiv 2403.05053, official code.
    """

    name: ClassVar[str] = "keep-scene"
    claims: ClassVar[frozenset[str]] = frozenset({"overwrite"})
    no_settings: ClassVar[frozenset[str]] = frozenset({"background", "subject", "box", "pair"})

    background: Trajectory = field(repr=False, compare=False)
    subject: Trajectory = field(repr=False, compare=False)
    box: Tensor = field(repr=False, compare=False)
    pair: tuple[Tensor, Tensor] = field(repr=False, compare=False)
    paste_until: float | int = 0.1
    steps: Schedule = field(default=until(0.8), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        until(self.paste_until)  # refuses what is no bound

    def strength_at(self, index: int, total: int | None) -> float:
        is_pasted = until(self.paste_until).strength(index, total) != 0.0
        return 1.0 if is_pasted else self.steps.strength(index, total)

    def begin(self, run: RunStart) -> None:
        if len(self.background.timesteps) != run.total:
            raise FeatureError(
                f"{self.name}: the scene has {len(self.background.timesteps)} steps and the run "
                f"{run.total}; run with the number of steps of the inversion"
            )

    def after_step(self, call: LatentsCall) -> Tensor:
        scene, canvas = (
            known.after(call.step.timestep).to(call.latents).expand_as(call.latents)
            for known in (self.background, self.subject)
        )
        if until(self.paste_until).strength(call.step.index, call.step.total) != 0.0:
            own, to = (tokens.to(call.latents.device) for tokens in self.pair)
            return with_tokens(scene, to, canvas, own)
        kept = torch.where(self.box.to(call.latents.device), call.latents, scene)
        return kept if call.strength == 1.0 else torch.lerp(call.latents, kept, call.strength)
