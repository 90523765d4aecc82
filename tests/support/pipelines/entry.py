"""What one tiny pipeline is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import nn


@dataclass(frozen=True, slots=True)
class TinyPipeline:
    """A genuine diffusers pipeline made of small random components.

    Attributes:
        name: Key in ``PIPELINES``.
        make: Builds the pipeline; called by ``build`` under a fixed seed.
        family: File name of the attnctl family of its denoiser, None for an unknown one.
        batched: Does guidance put several branches into one batch?
    """

    name: str
    make: Callable[[], DiffusionPipeline]
    family: str | None = None
    batched: bool = True

    def build(self, seed: int = 0) -> DiffusionPipeline:
        """Make the pipeline with random weights; two calls give equal twins."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe = self.make()
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        return pipe
