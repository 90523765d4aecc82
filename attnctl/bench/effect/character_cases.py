"""Portraits and scenes with the same characters: how they are drawn, found and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import torch
from PIL import Image

import attnctl
from attnctl.bench.edit.scores import psnr
from attnctl.shapes.captions import Caption, ObjectKind, Prompt, prompts
from attnctl.shapes.verifier import Seen, VerifierSettings, look
from attnctl.technique import Technique

PAIR = 2
"""Characters of a scene."""

SIZE_PX = 32
"""Width and height to which objects are brought before they are compared."""

GREY = 0.5
"""What stands for a background."""

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class CharacterCase:
    """Portraits and a scene, drawn in one batch.

    Attributes:
        name: Its id.
        prompt: That of the scene, with the seed of its noise.
        portrait_seed: Seed of the noise that portraits share.
    """

    name: str
    prompt: Prompt
    portrait_seed: int

    @property
    def batch(self) -> list[str]:
        """Prompts of the batch, the scene last."""
        return [*(str(Caption((kind,))) for kind in self.prompt.objects), self.prompt.text]

    def noise(self) -> list[torch.Generator]:
        """Fresh generators of the batch."""
        seeds = [self.portrait_seed] * len(self.prompt.objects) + [self.prompt.seed]
        return [torch.Generator().manual_seed(seed) for seed in seeds]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the characters are, in parts of the pictures.

    Attributes:
        portraits: One box for each, in its portrait.
        scene: One box for each, in the scene.
    """

    portraits: tuple[Corners, ...]
    scene: tuple[Corners, ...]


def make_cases(split: str, count: int) -> list[CharacterCase]:
    """Prompts of scenes with seeds of portraits; a shorter list begins a longer one."""
    pairs = zip(prompts(split, PAIR, count), prompts(split, 1, count), strict=True)
    return [CharacterCase(f"{at:05d}", scene, one.seed) for at, (scene, one) in enumerate(pairs)]


def draw(
    pipe: Any, case: CharacterCase, steps: int, guidance: float, techniques: Sequence[Technique]
) -> list[Image.Image]:
    """Draw portraits and scene, the scene last."""
    with attnctl.attach(pipe, list(techniques)):
        return pipe(
            case.batch,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=case.noise(),
        ).images


def find_places(case: CharacterCase, pictures: Sequence[Image.Image]) -> Places | None:
    """Where the verifier sees the characters.

    Each portrait must show its own; in the scene there must be an object for each, of any colour
    and shape: those that have most in common with it are taken.

    Returns:
        The places, or ``None`` if one is missing.
    """
    kinds = case.prompt.objects
    shown = [
        next((seen for seen in look(picture) if seen.kind == kind), None)
        for kind, picture in zip(kinds, pictures, strict=False)
    ]
    portraits = [seen for seen in shown if seen is not None]
    scene = matched(kinds, look(pictures[-1]))
    if scene is None or len(portraits) < len(kinds):
        return None
    size = pictures[-1].size
    return Places(_in_parts(portraits, size), _in_parts(scene, size))


def matched(kinds: Sequence[ObjectKind], found: Sequence[Seen]) -> list[Seen] | None:
    """An object for each kind, so that most colours and shapes are right; ``None``: too few.

    Of equally right choices the one with larger objects counts.
    """
    choices = list(permutations(found, len(kinds)))
    return list(max(choices, key=lambda one: _common(kinds, one))) if choices else None


def _common(kinds: Sequence[ObjectKind], found: Sequence[Seen]) -> int:
    pairs = list(zip(kinds, found, strict=True))
    return sum((k.colour == s.colour) + (k.shape == s.shape) for k, s in pairs)


def seen_again(case: CharacterCase, places: Places, scene: Image.Image) -> Places:
    """The places with those of another scene, if the verifier sees all characters there."""
    found = matched(case.prompt.objects, look(scene))
    return places if found is None else replace(places, scene=_in_parts(found, scene.size))


def likeness(places: Places, pictures: Sequence[Image.Image]) -> float:
    """How much characters are like their portraits.

    Returns:
        Mean over characters of the PSNR between their boxes in portrait and scene, dB, each
        brought to `SIZE_PX` squared; what has no colour counts as one grey, so that backgrounds
        do not matter.
    """
    numbers = [
        psnr(_cut(portrait, own), _cut(pictures[-1], there))
        for portrait, own, there in zip(pictures, places.portraits, places.scene, strict=False)
    ]
    return sum(numbers) / len(numbers)


def _in_parts(found: Sequence[Seen], size: tuple[int, int]) -> tuple[Corners, ...]:
    width, height = size
    listed: list[Corners] = []
    for left, top, right, bottom in (seen.box for seen in found):
        listed.append((left / width, top / height, right / width, bottom / height))
    return tuple(listed)


def _cut(picture: Image.Image, box: Corners) -> np.ndarray:
    width, height = picture.size
    left, top, right, bottom = box
    corners = left * width, top * height, right * width, bottom * height
    size = (SIZE_PX, SIZE_PX)
    cut = picture.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=corners)
    pixels = np.asarray(cut).astype(np.float64) / 255
    is_plain = pixels.max(axis=2) - pixels.min(axis=2) <= VerifierSettings().chroma
    return np.where(is_plain[..., None], GREY, pixels)


def joined(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        strip.paste(picture, (place * width, 0))
    return strip


def parted(strip: Image.Image, count: int) -> list[Image.Image]:
    """The inverse of :func:`joined`."""
    width = strip.width // count
    return [strip.crop((at * width, 0, (at + 1) * width, strip.height)) for at in range(count)]
