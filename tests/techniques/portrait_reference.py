"""IR-Diffusion as attention processors of its own: layer inputs are cropped and pasted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.ir_diffusion import dropped
from tests.support.pipelines import generate
from tests.support.projections import projected

NEVER = -1e9


@dataclass
class Portraits:
    """What is drawn: masks on the latents' grid, portraits first in the batch, the scene last.

    Attributes:
        references: Where each subject is in its portrait, bool ``(16, 16)``.
        targets: Where it is in the scene.
        start: First self-attention layer that sees the portraits.
        dropout: Share of queries that do not; drawn as the technique draws them.
        weight: Of the portraits' texts.
        self_layers: Paths of self-attention in execution order.
        step: Forwards so far.
    """

    references: Sequence[Tensor]
    targets: Sequence[Tensor]
    start: int
    dropout: float = 0.5
    weight: float = 0.9
    self_layers: list[str] = field(default_factory=list)
    step: int = -1


class PortraitProcessor:
    """Attention as written; the last row of each half of the batch is the scene."""

    def __init__(self, path: str, portraits: Portraits) -> None:
        self.path, self.portraits = path, portraits

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        scenes = 1 + len(self.portraits.references)
        rows: list[Tensor] = []
        for at in range(len(hidden_states)):
            first = at - at % scenes
            is_scene = at % scenes == scenes - 1
            if encoder_hidden_states is None:
                others = hidden_states[first:at] if is_scene else []
                rows.append(self.look(attn, hidden_states[at], others))
                continue
            out = plain(attn, hidden_states[at], encoder_hidden_states[at])
            if is_scene:
                texts = [plain(attn, hidden_states[at], encoder_hidden_states[first + s])
                         for s in range(scenes - 1)]  # fmt: skip
                out = self.blend(out, texts)
            rows.append(out)
        return torch.stack(rows)

    def look(self, attn: Any, hidden: Tensor, others: Sequence[Tensor]) -> Tensor:
        p, tokens = self.portraits, len(hidden)
        if not len(others):
            return plain(attn, hidden, hidden)
        side = round(tokens**0.5)
        references, targets = ([shrunk(m, side) for m in one] for one in (p.references, p.targets))
        sources, masks = [], []
        if p.self_layers.index(self.path) >= p.start:
            for s, (mine, theirs) in enumerate(zip(references, targets, strict=True)):
                moved, shown = paste(others[s].T.unflatten(1, (side, side)), mine, theirs)
                sources.append(moved.flatten(1).T)
                seeing = dropped(theirs.flatten(), p.dropout, 0, p.step, side, side, s)
                mask = torch.full((tokens, tokens), NEVER)
                mask[torch.outer(seeing, shown.flatten())] = 0.0
                masks.append(mask)
        own = torch.zeros(tokens, tokens)
        for a, here in enumerate(targets):
            for b, there in enumerate(targets):
                if a != b:
                    own[torch.outer(here.flatten(), there.flatten())] = NEVER
        return plain(attn, hidden, torch.cat([*sources, hidden]), torch.cat([*masks, own], dim=1))

    def blend(self, out: Tensor, texts: Sequence[Tensor]) -> Tensor:
        side, weight = round(len(out) ** 0.5), self.portraits.weight
        masks = torch.stack([shrunk(m, side).flatten() for m in self.portraits.targets]).float()
        mean = sum(m[:, None] * t for m, t in zip(masks, texts, strict=True))
        mean = mean / (masks.sum(0)[:, None] + 1e-8)
        inside = masks.any(0)[:, None]
        return torch.where(inside, (1 - weight) * out + weight * mean, out)


def plain(attn: Any, hidden: Tensor, seen: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of one row behind the output projection, ``(tokens, C)``."""
    query, key, value = projected(attn, hidden, seen)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    probs = (scores if mask is None else scores + mask).softmax(-1)
    return attn.to_out[0]((probs @ value).transpose(0, 1).flatten(1))


def shrunk(mask: Tensor, side: int) -> Tensor:
    """Every second (or fourth) cell; the masks of the tests have even sides."""
    step = len(mask) // side
    return mask[::step, ::step]


def paste(features: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Features ``(C, h, w)`` cropped, resized and pasted on zeros, and the mask likewise."""
    canvas = torch.zeros(len(features) + 1, *source.shape)
    both = torch.cat([features * source, source[None].float()])
    y, x = source.nonzero().T
    v, u = target.nonzero().T
    crop = both[:, y.min() : y.max() + 1, x.min() : x.max() + 1]
    size = (int(v.max() - v.min()) + 1, int(u.max() - u.min()) + 1)
    pasted = F.interpolate(crop[None], size=size, mode="nearest")[0]
    canvas[:, v.min() : v.max() + 1, u.min() : u.max() + 1] = pasted
    return canvas[:-1], canvas[-1] > 0


def reference_run(pipe: Any, portraits: Portraits, prompts: list[str], **settings: Any) -> Tensor:
    """Last latents of a run with these processors."""
    before = dict(pipe.unet.attn_processors)
    paths = [path.removesuffix(".processor") for path in before]
    in_order = [p for stage in ("down", "mid", "up") for p in paths if p.startswith(stage)]
    portraits.self_layers = [path for path in in_order if path.endswith("attn1")]

    def count(*_: Any) -> None:
        portraits.step += 1

    hook = pipe.unet.register_forward_pre_hook(count)
    pipe.unet.set_attn_processor(
        {f"{path}.processor": PortraitProcessor(path, portraits) for path in paths}
    )
    try:
        return generate(pipe, prompts, **settings)
    finally:
        hook.remove()
        pipe.unet.set_attn_processor(before)
