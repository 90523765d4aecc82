"""One step of Adam, and an optimiser that lives for one denoising step."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class Adam:
    """Adam over the evaluations of one denoising step.

    Attributes:
        eps: Added to the root of the second mean.
        means: Running means of gradients and of their squares; ``None`` at the start.
    """

    eps: float = 1e-7
    means: tuple[Tensor, Tensor] | None = None

    def step(self, count: int, size: float, gradient: Tensor) -> Tensor:
        """What to subtract after evaluation number ``count``, from 1; see :func:`adam_step`."""
        first, second = self.means or (torch.zeros_like(gradient), torch.zeros_like(gradient))
        step, *means = adam_step(gradient, first, second, count, size, eps=self.eps)
        self.means = (means[0], means[1])
        return step


def adam_step(
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    count: int,
    size: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-7,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one step of Adam; an item whose gradient is 0 everywhere stays where it is.

    Args:
        gradient: ``(B, ...)``.
        first: Running mean of gradients, the same shape, zeros at the start.
        second: Running mean of their squares, likewise.
        count: Number of this step, from 1.
        size: Learning rate: elements move by about that, whatever the scale of the gradient.
        betas: Decay of the two means.
        eps: Added to the root of the second mean; 1e-7 as in the official code.

    Returns:
        What to subtract, and the new means.

    Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    first = betas[0] * first + (1 - betas[0]) * gradient
    second = betas[1] * second + (1 - betas[1]) * gradient**2
    root = (second / (1 - betas[1] ** count)).sqrt()
    step = size * first / (1 - betas[0] ** count) / (root + eps)
    moves = gradient.flatten(1).any(dim=1).view(-1, *[1] * (gradient.dim() - 1))
    return torch.where(moves, step, torch.zeros_like(step)), first, second
