"""Trajectory replay: one item follows stored latents exactly, whatever the model predicts."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from attnctl.calls import LatentsCall, RunStart
from attnctl.editing.trajectories import Trajectory
from attnctl.errors import FeatureError, SettingError
from attnctl.registry import register
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.inversion import Inversion


@register("trajectory-replay")
@dataclass(frozen=True)
class TrajectoryReplay(Technique):
    """Overwrite the source item's latents after each step by those of its inversion.

    The source is then reconstructed exactly, however rough the inversion is, and the other items
    see its true features at every step. ``attnctl.pipelines.edit`` attaches it with the trajectory
    of its own inversion.

    Only the source item is written, which techniques of editing never touch; so it goes with those
    that write the other items' latents.

    Attributes:
        trajectory: Latents of the source by timestep, with one item or with all of them; ``None``:
            the edit pipeline fills it in.
        source: Item that follows it.
        match: Find a step's latents by its ``"timestep"``, exactly; or by its ``"index"``, for
            solvers that evaluate between the levels of the trajectory.
        where: No effect: latents are overwritten, not attention.
    """

    reference: ClassVar[str] = "Avrahami et al., CVPR 2025, arXiv 2411.14430 (Stable Flow)"
    no_settings: ClassVar[frozenset[str]] = frozenset({"trajectory"})

    trajectory: Trajectory | None = field(default=None, repr=False, compare=False)
    source: int = 0
    match: str = "timestep"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_item(self.name, "source", self.source)
        if self.match not in ("timestep", "index"):
            raise SettingError(f"{self.name}: match={self.match!r} must be 'timestep' or 'index'")

    def with_inversion(self, inversion: "Inversion") -> "TrajectoryReplay":
        """The same settings for what an inversion found.

        Raises:
            FeatureError: the inversion has no latents at the levels of the sampler.
        """
        if inversion.trajectory is None:
            raise FeatureError(
                f"{self.name} cannot follow this inversion: {inversion.method} with "
                "consistent=False does not meet the sampler's levels; use consistent=True"
            )
        return replace(self, trajectory=inversion.trajectory)

    def begin(self, run: RunStart) -> Trajectory:
        if self.trajectory is None:
            raise FeatureError(
                f"{self.name} has no trajectory to follow; give "
                "trajectory=attnctl.inversion.invert(...).trajectory, or use "
                "attnctl.pipelines.edit, which does"
            )
        refuse_missing_item(self.name, "source", self.source, run.items)
        if self.trajectory.items not in (1, run.items):
            raise FeatureError(
                f"{self.name}: the trajectory has {self.trajectory.items} items and the run "
                f"{run.items}; invert the source alone, or all items"
            )
        steps = len(self.trajectory.timesteps)
        if run.total != steps:
            raise FeatureError(
                f"{self.name}: the trajectory has {steps} steps and the run {run.total}; run with "
                "the number of steps of the inversion"
            )
        return self.trajectory

    def after_step(self, call: LatentsCall) -> Tensor:
        known: Trajectory = call.state
        if self.match == "index":
            after = known.latents[call.step.index + 1]
        else:
            after = known.after(call.step.timestep)
        own = after[self.source if known.items > 1 else 0]
        latents = call.latents.clone()
        if own.shape != latents[self.source].shape:
            raise FeatureError(
                f"{self.name}: the trajectory has latents of shape {tuple(own.shape)}, the run "
                f"{tuple(latents[self.source].shape)}; invert at the size of the run"
            )
        latents[self.source] = own.to(latents)
        return latents


def check_item(technique: str, name: str, value: Any) -> None:
    """Refuse a setting that is no index of an item.

    Raises:
        SettingError: naming the technique, the setting and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SettingError(f"{technique}: {name}={value!r} must be an item's index, from 0")


def refuse_missing_item(technique: str, name: str, item: int, items: int) -> None:
    """Refuse an item that the run does not have.

    Raises:
        SettingError: naming the technique, the setting and the number of items.
    """
    if item >= items:
        raise SettingError(
            f"{technique}: {name}={item}, but the run has {items} item{'s' if items > 1 else ''}; "
            "call the pipeline with a list of prompts, source first"
        )
