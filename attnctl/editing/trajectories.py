"""The latents of one run at every level of its sampler, such as an inversion leaves them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from attnctl.errors import FeatureError

if TYPE_CHECKING:
    from attnctl.inversion.levels import Ladder


class Trajectory:
    """Latents from noise to clean, by the timestep of their level.

    Args:
        timesteps: What the sampler tells the denoiser in each step, from noise to clean.
        latents: One more: where each step starts, and last where the run ends; ``(items, ...)``
            each.
        offload: Keep them in the memory of the CPU.
    """

    def __init__(
        self, timesteps: Sequence[float], latents: Sequence[Tensor], *, offload: bool = False
    ) -> None:
        if len(latents) != len(timesteps) + 1:
            raise ValueError(
                f"{len(timesteps)} timesteps want {len(timesteps) + 1} latents, got {len(latents)}"
            )
        self.timesteps = tuple(float(t) for t in timesteps)
        self.latents = tuple(x.detach().to("cpu") if offload else x.detach() for x in latents)

    @property
    def noise(self) -> Tensor:
        """Where the run starts."""
        return self.latents[0]

    @property
    def clean(self) -> Tensor:
        """Where the run ends."""
        return self.latents[-1]

    @property
    def items(self) -> int:
        """Pictures or clips."""
        return len(self.noise)

    def at(self, timestep: float) -> Tensor:
        """Latents that a step with this timestep starts from.

        Raises:
            FeatureError: no step has exactly this timestep.
        """
        return self.latents[self._place(timestep)]

    def after(self, timestep: float) -> Tensor:
        """Latents that a step with this timestep ends at.

        Raises:
            FeatureError: no step has exactly this timestep.
        """
        return self.latents[self._place(timestep) + 1]

    @property
    def nbytes(self) -> int:
        """Memory that the latents take, in bytes."""
        return sum(x.nbytes for x in self.latents)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.noise.shape))
        return (
            f"<Trajectory: {len(self.timesteps)} steps of {shape}, {self.nbytes / 2**20:.1f} MiB>"
        )

    def _place(self, timestep: float) -> int:
        if float(timestep) not in self.timesteps:
            raise FeatureError(
                f"the trajectory has no latents at timestep {timestep:g}; it has {self._range()}. "
                "Run with the scheduler and the number of steps of the inversion"
            )
        return self.timesteps.index(float(timestep))

    def _range(self) -> str:
        if not self.timesteps:
            return "none"
        return f"{len(self.timesteps)} steps from {self.timesteps[0]:g} to {self.timesteps[-1]:g}"


class NoisedTrajectory(Trajectory):
    """Given latents at every level of a sampler, with one noise for the whole run.

    Args:
        ladder: Levels of the sampler.
        clean: The given latents, ``(items, ...)``; the run ends there.
        noise: Of the same shape.
        scheduler: Class of the sampler.
    """

    def __init__(self, ladder: "Ladder", clean: Tensor, noise: Tensor, scheduler: str) -> None:
        noised = [ladder.noised(clean, noise, level) for level in ladder.levels[:-1]]
        super().__init__(ladder.timesteps, [*noised, clean])
        self.ladder, self.scheduler = ladder, scheduler

    def estimate(self, timestep: float, latents: Tensor, prediction: Tensor) -> Tensor:
        """The clean latents that a prediction at a timestep of this sampler points to.

        Raises:
            FeatureError: no step has exactly this timestep.
        """
        here = self.ladder.levels[self._place(timestep)]
        derivative = self.ladder.derivative(latents, prediction, here)
        return self.ladder.clean(latents, derivative, here)
