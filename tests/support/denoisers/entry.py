"""What one tiny denoiser is: a diffusers class, its settings and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

NEVER_INITIALISED = ("pad_token", "gate_up_proj", "experts.down_proj")  # by their classes


class Draw:
    """Random tensors from one seeded generator; the global generator is left alone."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Draw from the normal distribution."""
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        """Draw from [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw whole numbers from 0 to ``high - 1``."""
        return torch.randint(0, high, shape, generator=self.generator)


@dataclass(frozen=True, slots=True)
class TinyDenoiser:
    """One configuration of one diffusers denoiser, small enough for a CPU test.

    Attributes:
        name: Key in ``DENOISERS``.
        model_class: Class name in ``diffusers``.
        family: File name of the attnctl family that describes the class, None without one.
        settings: Constructor arguments.
        draw: Makes the keyword arguments of ``forward`` from seeded noise.
        rows: Length of the batch axis in the inputs.
        gain: Factor on all weight matrices, for models whose small gates would hide attention.
    """

    name: str
    model_class: str
    settings: Mapping[str, Any]
    draw: Callable[[Draw], dict[str, Any]]
    family: str | None = None
    rows: int = 2
    gain: float = 1.0

    def build(self, seed: int = 0) -> nn.Module:
        """Make the model with random weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(diffusers, self.model_class)(**self.settings)
            wake_silent_parameters(model, self.gain)
        return model.eval()

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """Make fresh keyword arguments for ``forward``."""
        return self.draw(Draw(seed))

    def run(self, model: nn.Module, seed: int = 0) -> Tensor:
        """Run the model once without gradients and return its prediction."""
        with torch.no_grad():
            return prediction(model(**self.inputs(seed)))


def wake_silent_parameters(model: nn.Module, gain: float) -> None:
    """Replace all-zero and never-initialised parameters by small noise; scale weight matrices.

    Zero gates would hide attention from the output, and ``torch.empty`` is different in each run.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(NEVER_INITIALISED) or not parameter.any():
                parameter.normal_(std=0.1)
            elif parameter.ndim > 1:
                parameter.mul_(gain)


def prediction(output: Any) -> Tensor:
    """Return what a denoiser predicts as one tensor, whatever its container."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return prediction(next(iter(output.values())))
    return torch.cat([prediction(part).flatten() for part in output])
