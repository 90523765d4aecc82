"""Runs of a source and a target in one batch, and what tests look at in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Technique
from tests.support.pipelines import generate

PAIR = ("a red cat and a frog", "a blue dog")
PAIRED = ("flux", "flux_dev", "sd3", "sd35")
STEPS = 3
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "flux": ("flux", {}),
    "flux, embedded guidance": ("flux_dev", {}),
    "flux, one call a branch": ("flux", {"true_cfg_scale": 4.0, "negative_prompt": ["a", "on"]}),
    "sd3": ("sd3", {}),
    "sd3, no guidance": ("sd3", {"guidance_scale": 1.0}),
    "sd3.5": ("sd35", {}),
}
"""Tiny pipelines, and how they are called."""


@dataclass(frozen=True)
class Outputs(Technique):
    """Keeps what each site gives at this place of the chain."""

    name: ClassVar[str] = "outputs"
    can_repeat: ClassVar[bool] = True
    place: str = ""
    by_site: dict[tuple[int, str], Tensor] = field(default_factory=dict, compare=False)
    calls: dict[tuple[int, str], AttentionCall] = field(default_factory=dict, compare=False)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        self.by_site[(call.step.index, call.site.path)] = out.clone()
        self.calls[(call.step.index, call.site.path)] = call
        return out


def same_noise(pipe: Any, items: int = 2, seed: int = 0) -> Tensor:
    """The same start for every item: ``(items, ...)``."""
    shape = (1, 64, 16) if "Flux" in type(pipe).__name__ else (1, 4, 16, 16)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.to(pipe.transformer.dtype).expand(items, *shape[1:]).clone()


def pair_run(pipe: Any, *techniques: Technique, prompts: Any = PAIR, **changes: Any) -> Tensor:
    """Last latents ``(items, ...)`` of a run with techniques attached; plain if there are none."""
    arguments = {"steps": STEPS, "latents": same_noise(pipe, len(prompts)), **changes}
    if not techniques:
        return generate(pipe, list(prompts), **arguments)
    with attnctl.attach(pipe, list(techniques)):
        return generate(pipe, list(prompts), **arguments)


def latents_by_step(pipe: Any, *techniques: Technique, **changes: Any) -> list[Tensor]:
    """Latents after each step."""
    seen: list[Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(kept["latents"].clone())
        return {}

    pair_run(pipe, *techniques, callback_on_step_end=keep, **changes)
    return seen


def predictions(pipe: Any, *techniques: Technique, **changes: Any) -> list[Tensor]:
    """What the denoiser gave at each call, added rows still there."""
    seen: list[Tensor] = []
    before = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = before(*args, **kwargs)
        seen.append(result[0].clone())
        return result

    pipe.transformer.forward = forward
    try:
        pair_run(pipe, *techniques, **changes)
    finally:
        del pipe.transformer.forward
    return seen
