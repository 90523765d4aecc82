"""Clips to edit and ways to edit them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from attnctl.shapes.clips import Clip, ClipSettings, draw_clip
from attnctl.shapes.world import WorldSettings

EITHER_NUMBER = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
"""Clips of one object and of two, in turn."""


@dataclass(frozen=True)
class VideoCase:
    """One clip and its edit.

    Attributes:
        name: Place in the list.
        clip: What is edited.
        slot: The object that changes its colour.
        colour: Its new colour, which no object of the clip has.
    """

    name: str
    clip: Clip
    slot: int
    colour: str

    @cached_property
    def answer(self) -> Clip:
        """The right answer."""
        return self.clip.recoloured(self.slot, self.colour)

    @property
    def source(self) -> str:
        """Caption of the clip."""
        return str(self.clip.caption)

    @property
    def target(self) -> str:
        """Caption of the edit."""
        return str(self.answer.caption)


@dataclass(frozen=True, slots=True)
class VideoCondition:
    """One way to edit.

    Attributes:
        name: For the table.
        techniques: As in a recipe.
        flow: Provider of the motion, or ``none``.
        inject: Features of the inversion are taken over until this fraction of the run, by
            techniques whose settings do not say otherwise.
    """

    name: str
    techniques: tuple[dict[str, dict[str, Any]], ...] = ()
    flow: str = "none"
    inject: float = 0.0

    def to_plain(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "techniques": list(self.techniques),
            "flow": self.flow,
            "inject": self.inject,
        }


WORDS: dict[str, dict[str, Any]] = {"word-swap": {}}
"""Exchanges words in the maps of the source, so that the first four conditions differ in nothing
but how frames meet."""

FLATTEN: dict[str, dict[str, Any]] = {"flatten": {"carry": True, "inject_until": 1.0}}
"""Features of the source throughout: a colour needs none of its own, and outlines stay steadier."""

CONDITIONS = (
    VideoCondition("per-frame", (WORDS,), inject=0.8),
    VideoCondition("cross-frame attention", (WORDS, {"cross-frame-attention": {}}), inject=0.8),
    VideoCondition("dense attention", (WORDS, {"flatten": {"inject_until": 1.0}}), inject=0.8),
    VideoCondition("FLATTEN", (WORDS, FLATTEN), flow="dis", inject=0.8),
    VideoCondition("per-frame, no word-swap"),
    VideoCondition("FLATTEN, no word-swap", (FLATTEN,), "dis", 0.8),
)


def make_cases(split: str, count: int, frames: int = 16) -> list[VideoCase]:
    """Draw clips with their edits; a shorter list is the beginning of a longer one.

    Args:
        split: Name of the list; lists of different names share no clip.
        count: Clips, at least 1.
        frames: Frames of a clip.
    """
    seed = int.from_bytes(hashlib.sha256(f"attnctl clips {split}".encode()).digest()[:6], "big")
    cases: list[VideoCase] = []
    for number in range(count):
        clip = _distinct(torch.Generator().manual_seed(seed + number), number, frames)
        used = {kind.colour for kind in clip.caption.objects}
        source = random.Random(seed + number)
        words = clip.scenes.settings.vocabulary
        colour = source.choice([name for name in words.colours if name not in used])
        slot = source.randrange(len(clip.caption.objects))
        cases.append(VideoCase(f"{number:04d}", clip, slot, colour))
    return cases


def _distinct(generator: torch.Generator, number: int, frames: int) -> Clip:
    """Draw a clip whose objects differ in colour and in shape."""
    weights = EITHER_NUMBER[number % len(EITHER_NUMBER)]
    settings = ClipSettings(frames=frames, world=WorldSettings(count_weights=weights))
    while True:
        clip = draw_clip(generator, settings)
        kinds: Sequence[Any] = clip.caption.objects
        if len({k.colour for k in kinds}) == len({k.shape for k in kinds}) == len(kinds):
            return clip
