"""Prompt-to-Prompt in the classic way: a processor that edits whole maps, for two prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.pipelines import generate
from tests.support.projections import projected
from tests.techniques.paired_runs import noise


@dataclass
class Controller:
    """What the maps of the target become.

    Attributes:
        columns: For a target column, source columns with their weights; others are its own.
        factors: Factor of a target column.
        cross_steps: Steps whose cross-attention is edited.
        self_steps: Steps whose self-attention is edited.
        self_tokens: Largest self-attention that is edited.
    """

    columns: dict[int, list[tuple[int, float]]]
    cross_steps: range
    self_steps: range
    self_tokens: int = 256
    factors: dict[int, float] = field(default_factory=dict[int, float])
    step: int = 0

    def edit(self, probs: Tensor, is_cross: bool) -> Tensor:
        """Edit maps ``(4, H, Q, K)`` of the rows: two without prompts, source, target."""
        source, target = probs[2], probs[3].clone()
        if is_cross and self.step in self.cross_steps:
            for column, parts in self.columns.items():
                target[..., column] = sum(weight * source[..., at] for at, weight in parts)  # type: ignore[assignment]
            for column, factor in self.factors.items():
                target[..., column] *= factor
        if not is_cross and self.step in self.self_steps and probs.shape[2] <= self.self_tokens:
            target = source
        return torch.stack([*probs[:3], target])


class ReferenceProcessor:
    """Attention with whole maps, through a controller."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        probs = (attn.scale * query @ key.transpose(2, 3)).softmax(-1)
        probs = self.controller.edit(probs, encoder_hidden_states is not None)
        return attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))


def run_reference(pipe: Any, controller: Controller, prompts: list[str], steps: int) -> Tensor:
    """Latents of source and target; the pipeline keeps the processors."""

    def count(_pipe: Any, step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        controller.step = step + 1
        return values

    pipe.unet.set_attn_processor(ReferenceProcessor(controller))
    latents = noise(pipe, 2)
    return generate(pipe, prompts, steps, latents=latents, callback_on_step_end=count)
