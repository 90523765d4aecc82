"""PrimeComposer as the paper has it: two forwards a step, whole maps, float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.support.projections import projected


@dataclass
class Plan:
    """What is composed, on latents of 16 by 16 cells.

    Attributes:
        mask: The object on its canvas, bool ``(16, 16)``.
        shift: Rows and columns to its place in the scene.
        words: Positions of the object's words; empty: they are not confined.
        mode: ``"plain"``, ``"correlate"`` (rows: scene with object, canvas) or ``"infuse"``
            (rows: unconditional, conditional).
        logits: W of each layer, ``(H, n, K)``.
        largest_error: How far sums of infused rows were from 1.
    """

    mask: Tensor
    shift: tuple[int, int]
    words: Sequence[int] = ()
    mode: str = "plain"
    logits: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    largest_error: float = 0.0

    def tokens(self, side: int) -> tuple[list[int], list[int]]:
        """The object's tokens on its canvas, and in the scene."""
        step = 16 // side
        own, scene = [], []
        for y in range(side):
            for x in range(side):
                if self.mask[y * step, x * step]:
                    own.append(y * side + x)
                    scene.append(
                        (y + self.shift[0] // step) * side + x + self.shift[1] // step
                    )  # fmt: skip
        return own, scene


class ComposerProcessor:
    """Attention as written, row by row."""

    def __init__(self, path: str, plan: Plan) -> None:
        self.path, self.plan = path, plan

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        is_self = encoder_hidden_states is None
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        own, scene = self.plan.tokens(round(query.shape[2] ** 0.5))
        rows = []
        for row in range(len(query)):
            q, k, v = query[row], key[row], value[row]
            if is_self and self.plan.mode == "correlate" and own:
                k, v = key[1][:, own], value[1][:, own]
            logits = q @ k.mT * q.shape[-1] ** -0.5
            if is_self and self.plan.mode == "correlate" and row == 0:
                self.plan.logits[self.path] = logits
            if is_self and self.plan.mode == "infuse" and row == 1 and own:
                known = self.plan.logits[self.path]
                logits[:, :, scene] = known
                logits[:, scene, :] = known.mT
            if not is_self and self.plan.mode != "correlate" and row == 1:
                outside = [p for p in range(logits.shape[1]) if p not in scene]
                for word in self.plan.words:
                    logits[:, outside, word] = -torch.inf
            probs = logits.softmax(-1)
            error = float((probs.sum(-1) - 1).abs().max())
            self.plan.largest_error = max(self.plan.largest_error, error)
            rows.append(probs @ v)
        return attn.to_out[0](torch.stack(rows).transpose(1, 2).flatten(2))


def install(unet: Any, plan: Plan) -> None:
    """Let a UNet attend by the plan, in float64."""
    unet.double()
    paths = list(unet.attn_processors)
    unet.set_attn_processor({path: ComposerProcessor(path, plan) for path in paths})


def pasted(base: Tensor, given: Tensor, plan: Plan, *, back: bool = False) -> Tensor:
    """The object's cells of ``given`` over a scene; ``back``: from the scene onto the canvas."""
    own, scene = plan.tokens(16)
    to, taken = (own, scene) if back else (scene, own)
    made = base.clone().flatten(2)
    made[:, :, to] = given.flatten(2)[:, :, taken]
    return made.view_as(base)


@torch.no_grad()
def composed(
    pipe: Any,
    plan: Plan,
    start: Tensor,
    levels: tuple[Sequence[Tensor], Sequence[Tensor]],
    texts: tuple[Tensor, Tensor],
    until: tuple[int, int, int],
    box: Tensor,
    scale: float,
) -> list[Tensor]:
    """Sample by hand.

    Args:
        pipe: Its UNet follows the plan, its DDIM sampler has its timesteps.
        plan: What is composed.
        start: Latents.
        levels: Background and canvas at every level, from noise to clean.
        texts: Conditional and unconditional embeddings.
        until: Steps with infusion, of pasting, of writing the scene.
        box: Cells that may differ.
        scale: Of guidance.

    Returns:
        Latents behind each step, float64.
    """
    (background, canvas), (text, empty) = levels, (x.double() for x in texts)
    infuse, paste, blend = until
    latents, kept = start.double(), []
    for index, time in enumerate(pipe.scheduler.timesteps):
        b, r = background[index].double(), canvas[index].double()
        if index < infuse:
            plan.mode = "correlate"
            shown = r if index == 0 else pasted(r, latents, plan, back=True)
            rows = torch.cat([pasted(b, r, plan), shown])
            pipe.unet(rows, time, encoder_hidden_states=torch.cat([text] * 2))
        plan.mode = "infuse" if index < infuse else "plain"
        both = torch.cat([empty, text])
        made = pipe.unet(torch.cat([latents] * 2), time, encoder_hidden_states=both).sample
        guided = made[:1] + scale * (made[1:] - made[:1])
        latents = pipe.scheduler.step(guided, time, latents).prev_sample
        b, r = background[index + 1].double(), canvas[index + 1].double()
        if index < paste:
            latents = pasted(b, r, plan)
        elif index < blend:
            latents = torch.where(box, latents, b)
        kept.append(latents)
    return kept
