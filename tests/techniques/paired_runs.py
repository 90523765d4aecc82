"""Runs of tiny pipelines with a source and a target picture in one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attnctl
from tests.support.pipelines import generate

SOURCE, TARGET = "a cat and a frog", "a dog and a frog"


def both(
    pipe: Any,
    *techniques: Any,
    source: str = SOURCE,
    target: str | list[str] = TARGET,
    steps: int = 4,
    **changes: Any,
) -> Tensor:
    """Latents of source and target(s), from one noise; without techniques: plain rows."""
    targets = [target] if isinstance(target, str) else target
    arguments = {"prompt": [source, *targets], "steps": steps, **changes}
    arguments["latents"] = noise(pipe, 1 + len(targets))
    if not techniques:
        return generate(pipe, **arguments)
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **arguments)


def noise(pipe: Any, items: int) -> Tensor:
    """The same start noise for every item, in the pipeline's own form."""
    shape = (1, 64, 16) if "Flux" in type(pipe).__name__ else (1, 4, 16, 16)
    one = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return one.repeat(items, *[1] * (len(shape) - 1))
