"""Bounded Attention as a sampling loop of its own, with masks written as loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.mask_clusters import k_means
from tests.support.projections import projected

Cells = list[set[int]]
NEVER = -1e9


@dataclass
class Settings:
    """As the technique's; token positions instead of words."""

    boxes: list[tuple[float, float, float, float]]
    subjects: list[list[int]]
    filtered: list[int]
    eos: int
    first: float
    last: float
    guidance_steps: int
    iterations: int
    stop_loss: float
    refresh: int
    loss_layers: Callable[[str], bool]
    map_layers: Callable[[str], bool]
    map_side: int


@dataclass
class Watched:
    """What the attention of one forward is told, and what it leaves behind."""

    settings: Settings
    cells: Callable[[int], Cells]
    is_guiding: bool = False
    kept: dict[str, Tensor] = field(default_factory=dict)


class MaskedProcessor:
    """Attention as written, masked; keeps the map of the conditional row."""

    def __init__(self, path: str, watched: Watched) -> None:
        self.path, self.watched = path, watched

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        side = round(hidden_states.shape[1] ** 0.5)
        cells = tuple(frozenset(one) for one in self.watched.cells(side))
        if encoder_hidden_states is None:
            scores = scores + image_mask(cells, side**2)
        else:
            s = self.watched.settings
            mask = text_mask(
                cells, side**2, text.shape[1], tuple(map(tuple, s.subjects)), tuple(s.filtered),
                s.eos, self.watched.is_guiding,
            )  # fmt: skip
            scores = torch.cat([scores[:1], scores[1:] + mask])  # the conditional row is the second
        probs = scores.softmax(dim=-1)
        self.watched.kept[self.path] = probs[1]
        return attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))


@cache
def image_mask(cells: tuple[frozenset[int], ...], count: int) -> Tensor:
    mask = torch.zeros(count, count)
    foreground = frozenset().union(*cells)
    for i in foreground:
        for j in foreground:
            if not any(i in one and j in one for one in cells):
                mask[i, j] = NEVER
    return mask


@cache
def text_mask(
    cells: tuple[frozenset[int], ...],
    count: int,
    tokens: int,
    subjects: tuple[tuple[int, ...], ...],
    filtered: tuple[int, ...],
    eos: int,
    is_guiding: bool,
) -> Tensor:
    mask = torch.zeros(count, tokens)
    for i in range(count):
        mine = [s for s, one in zip(subjects, cells, strict=True) if i in one]
        is_background = not mine
        if is_background and is_guiding:
            mine = list(subjects)
        for token in range(tokens):
            is_named = token in filtered or any(token in s for s in subjects)
            if is_named and not any(token in s for s in mine):
                mask[i, token] = NEVER
        if is_background and not is_guiding:
            mask[i, eos] = NEVER
    return mask


def box_cells(boxes: list[tuple[float, float, float, float]], side: int) -> Cells:
    return [
        {
            y * side + x
            for y in range(round(y0 * side), round(y1 * side))
            for x in range(round(x0 * side), round(x1 * side))
        }
        for x0, y0, x1, y1 in boxes
    ]


def guidance_loss(s: Settings, kept: dict[str, Tensor]) -> Tensor:
    """1.5 cross + 0.5 self, of one picture."""
    count = len(s.boxes)
    total = torch.zeros(())
    for kind, weight in (("attn2", 1.5), ("attn1", 0.5)):
        maps = [m for path, m in kept.items() if kind in path and s.loss_layers(path)]
        for number in range(count):
            inside, outside = [], []
            for probs in maps:
                boxes = box_cells(s.boxes, round(probs.shape[1] ** 0.5))
                background = [i for i in range(probs.shape[1]) if not any(i in b for b in boxes)]
                own = sorted(boxes[number])
                keys = [*s.subjects[number], s.eos] if kind == "attn2" else own
                inside.append(probs[:, own][:, :, keys].sum())
                outside.append(probs[:, background][:, :, keys].sum())
            fg, bg = torch.stack(inside).mean(), torch.stack(outside).mean()
            total = total + weight * (1 - fg / (fg + count * bg)) ** 2
    return total


def refined(
    s: Settings, word: Tensor, image: Tensor, cells: Cells, centres: Tensor | None
) -> tuple[Cells, Tensor]:
    """Masks from mean maps ``(n, S)`` and ``(n, n)``; the clustering alone is attnctl's."""
    features = image / (image.amax(dim=0, keepdim=True) + 1e-5)
    labels, centres = k_means(features, 3 * len(s.boxes), start=centres)
    evidence: list[list[float]] = []
    for number, own in enumerate(cells):
        sharp = torch.sigmoid(10 * (word[:, number] / word[:, number].max() - 0.2))
        scaled = (sharp - sharp.min()) / (sharp.max() - sharp.min())
        evidence.append([float(x) if i in own else 0.0 for i, x in enumerate(scaled)])
    found: Cells = [set() for _ in s.boxes]
    for cluster in set(labels.tolist()):
        inside = [i for i, label in enumerate(labels.tolist()) if label == cluster]
        scores = [sum(e[i] for i in inside) / min(sum(e), len(inside)) for e in evidence]
        best = max(range(len(scores)), key=scores.__getitem__)
        if scores[best] >= 0.2:
            found[best].update(inside)
    boxes = box_cells(s.boxes, s.map_side)
    for number, own in enumerate(found):
        if not own:
            found = [one - boxes[number] for one in found]
            found[number] = boxes[number]
    return found, centres


def resized(cells: Cells, side: int, to: int) -> Cells:
    maps = torch.zeros(1, len(cells), side * side)
    for number, own in enumerate(cells):
        maps[0, number, sorted(own)] = 1.0
    sized = F.interpolate(maps.unflatten(2, (side, side)), size=(to, to), mode="nearest-exact")
    return [set(one.flatten().nonzero().flatten().tolist()) for one in sized[0]]


def reference(
    pipe: Any, prompt: str, latents: Tensor, steps: int, scale: float, s: Settings
) -> tuple[Tensor, list[int], list[Cells]]:
    """Latents at the end, gradient steps of each guided step, and the masks of each refinement."""
    unet, scheduler = pipe.unet, pipe.scheduler
    before = unet.attn_processors
    current: dict[str, Any] = {"masks": None, "centres": None}

    def cells(side: int) -> Cells:
        if current["masks"] is None:
            return box_cells(s.boxes, side)
        return resized(current["masks"], s.map_side, side)

    watched = Watched(s, cells)
    unet.set_attn_processor({path: MaskedProcessor(path, watched) for path in before})
    cond, uncond = pipe.encode_prompt(prompt, "cpu", 1, True)
    text = torch.cat([uncond, cond])
    words, images, counts, masks = [], [], list[int](), list[Cells]()

    def forward(z: Tensor, time: Any, *, is_guiding: bool) -> Tensor:
        watched.is_guiding, watched.kept = is_guiding, {}
        return unet(torch.cat([z, z]), time, encoder_hidden_states=text).sample

    try:
        scheduler.set_timesteps(steps)
        z = latents
        for index, time in enumerate(scheduler.timesteps):
            norm, count = 1e9, 0
            while index < s.guidance_steps and count < s.iterations and norm >= s.stop_loss:
                z = z.detach().requires_grad_(True)
                with torch.enable_grad():
                    forward(z, time, is_guiding=True)
                    loss = guidance_loss(s, watched.kept)
                    (gradient,) = torch.autograd.grad(loss, z)
                eta = s.first + (s.last - s.first) / s.guidance_steps * index
                z, count = z.detach() - eta * gradient, count + 1
                norm = float(loss.detach()) / len(s.boxes)
            if index < s.guidance_steps:
                counts.append(count)
            elif (index - s.guidance_steps) % s.refresh == 0:
                seen = (torch.stack(words).mean(0), torch.stack(images).mean(0))
                so_far = cells(s.map_side)
                current["masks"], current["centres"] = refined(s, *seen, so_far, current["centres"])
                masks.append(current["masks"])
            with torch.no_grad():
                low, high = forward(z, time, is_guiding=False).chunk(2)
            for path, probs in watched.kept.items():
                if s.map_layers(path) and "attn2" in path:
                    words.append(probs[..., [own[-1] for own in s.subjects]].mean(0))
                elif s.map_layers(path):
                    images.append(probs.mean(0))
            z = scheduler.step(low + scale * (high - low), time, z).prev_sample
    finally:
        unet.set_attn_processor(before)
    return z.detach(), counts, masks
