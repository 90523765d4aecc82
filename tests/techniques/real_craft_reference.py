"""RealCraft with whole maps: a processor for the frames of one clip, guided by a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnctl.editing.features import FeatureStore
from tests.support.projections import projected
from tests.techniques.clip_runs import FRAMES, clip

FRAMES_SEEN: dict[str, list[list[int]]] = {
    "own": [[0], [1], [2]],
    "first": [[0], [0], [0]],
    "previous": [[0], [0], [1]],
    "both": [[0, 0], [0, 0], [0, 1]],
    "all": [[0, 1, 2], [0, 1, 2], [0, 1, 2]],
}
"""Frames that each of three frames attends to."""


@dataclass
class Controller:
    """What is edited, and what has been seen.

    Attributes:
        store: Queries and keys of the source.
        positions: Tokens of the new words.
        seen: Frames that each frame attends to.
        cross_steps: Steps whose cross-attention takes the source's maps.
        self_steps: Steps whose self-attention does.
        side: Of the maps that tell the object.
        threshold: Share of a map's maximum.
    """

    store: FeatureStore
    positions: list[int]
    seen: list[list[int]]
    cross_steps: range
    self_steps: range
    side: int = 16
    threshold: float = 0.3
    step: int = 0
    sums: list[Tensor] = field(default_factory=list[Tensor])
    past: list[Tensor] = field(default_factory=list[Tensor])

    def recorded(self, path: str) -> tuple[Tensor, Tensor]:
        """Query and key of the source at this step."""
        timestep = self.store.timesteps[self.step]
        query, key = (self.store.get(timestep, path, what) for what in ("query", "key"))
        return query, key

    def next_step(self) -> None:
        """What was seen in a step tells the object in the next one."""
        self.step += 1
        self.past = [x.clone() for x in self.sums]

    def count(self, source: Tensor, target: Tensor) -> None:
        """Add up maps of the new words, ``(F, H, Q, T)``."""
        seen = [m[..., self.positions].sum((1, 3)) for m in (source, target)]
        self.sums = [a + b for a, b in zip(self.sums, seen, strict=True)] if self.sums else seen

    def object_of(self, frame: int, tokens: int) -> Tensor:
        """Whether each token of a frame is the object's."""
        side = int(tokens**0.5)
        found = torch.zeros(side, side, dtype=torch.bool)
        for total in self.past:
            cells = total[frame].view(self.side, self.side)
            for y in range(self.side):
                for x in range(self.side):
                    place = (y * side // self.side, x * side // self.side)
                    found[place] |= cells[y, x] > self.threshold * cells.max()
        return found.flatten()


class ReferenceProcessor:
    """Attention with whole maps, frame by frame."""

    def __init__(self, path: str, controller: Controller) -> None:
        self.path, self.controller = path, controller

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        edit = self._self if encoder_hidden_states is None else self._cross
        return attn.to_out[0](edit(query, key, value, attn.scale).transpose(1, 2).flatten(2))

    def _cross(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        controller = self.controller
        probs = (scale * query @ key.mT).softmax(-1)
        own = probs[FRAMES:]
        theirs, keys = controller.recorded(self.path)
        source = (scale * theirs @ keys.mT).softmax(-1)
        if query.shape[2] == controller.side**2:
            controller.count(source, own)
        if controller.step in controller.cross_steps:
            mixed = source.clone()
            mixed[..., controller.positions] = own[..., controller.positions]
            probs = torch.cat([probs[:FRAMES], mixed])
        return probs @ value

    def _self(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        controller = self.controller
        theirs, keys = controller.recorded(self.path)
        is_edited = controller.step in controller.self_steps
        is_edited = is_edited and (bool(controller.past) or not controller.positions)
        outputs: list[Tensor] = []
        for place in range(2 * FRAMES):
            frame, start = place % FRAMES, place - place % FRAMES
            seen = controller.seen[frame]
            values = torch.cat([value[start + s] for s in seen], dim=1)
            others = torch.cat([key[start + s] for s in seen], dim=1)
            probs = (scale * query[place] @ others.mT).softmax(-1)
            if is_edited and start == FRAMES:
                known = torch.cat([keys[s] for s in seen], dim=1)
                source = (scale * theirs[frame] @ known.mT).softmax(-1)
                is_object = controller.object_of(frame, query.shape[2])
                probs = torch.where(is_object[:, None], probs, source)
            outputs.append(probs @ values)
        return torch.stack(outputs)


def run_reference(pipe: Any, controller: Controller, prompt: list[str], steps: int) -> Tensor:
    """Latents of the edited frames; the pipeline keeps the processors."""

    def count(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        controller.next_step()
        return values

    pipe.unet.set_attn_processor(
        {
            name: ReferenceProcessor(name.removesuffix(".processor"), controller)
            for name in pipe.unet.attn_processors
        }
    )
    return clip(pipe, prompt=prompt, steps=steps, callback_on_step_end=count)
