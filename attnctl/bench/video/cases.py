"""Clips to edit and ways to edit them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from attnctl.registry import find_technique
from attnctl.shapes.clips import Clip, ClipSettings, draw_clip
from attnctl.shapes.world import WorldSettings

EITHER_NUMBER = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
"""Clips of one object and of two, in turn."""


EDITS = ("colour", "shape", "none")
"""What an edit exchanges; without one the clip is to be drawn as it is."""


@dataclass(frozen=True)
class VideoCase:
    """One clip and its edit.

    Attributes:
        name: Place in the list.
        clip: What is edited.
        slot: The object that changes.
        new_word: Its new colour or shape, which no object of the clip has; empty without an edit.
        edit: Which of `EDITS`.
    """

    name: str
    clip: Clip
    slot: int
    new_word: str
    edit: str = "colour"

    @cached_property
    def answer(self) -> Clip:
        """The right answer; the size of an object in a new shape is one of several."""
        if self.edit == "none":
            return self.clip
        change = self.clip.recoloured if self.edit == "colour" else self.clip.reshaped
        return change(self.slot, self.new_word)

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
        strength: Frames are noised up to this share of the run, all with one noise, and drawn from
            there; 0: they are inverted and edited.
    """

    name: str
    techniques: tuple[dict[str, dict[str, Any]], ...] = ()
    flow: str = "none"
    inject: float = 0.0
    strength: float = 0.0

    def entries(self, case: VideoCase) -> list[dict[str, dict[str, Any]]]:
        """List the techniques as a recipe does; those that take ``words`` get the new word."""
        return [
            {name: {"words": [case.new_word], **given} if _takes_words(name) else given}
            for one in self.techniques
            for name, given in one.items()
        ]

    def to_plain(self) -> dict[str, Any]:
        """Plain values; a strength only where there is one."""
        drawn = {"strength": self.strength} if self.strength else {}
        return {
            "name": self.name,
            "techniques": list(self.techniques),
            "flow": self.flow,
            "inject": self.inject,
            **drawn,
        }


def _takes_words(technique: str) -> bool:
    return any(f.name == "words" for f in fields(find_technique(technique)))


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


def make_cases(split: str, count: int, frames: int = 16, edit: str = "colour") -> list[VideoCase]:
    """Draw clips with their edits; a shorter list is the beginning of a longer one.

    Args:
        split: Name of the list; lists of different names share no clip.
        count: Clips, at least 1.
        frames: Frames of a clip.
        edit: Which of `EDITS`; the clips are the same.
    """
    seed = int.from_bytes(hashlib.sha256(f"attnctl clips {split}".encode()).digest()[:6], "big")
    cases: list[VideoCase] = []
    for number in range(count):
        clip = _distinct(torch.Generator().manual_seed(seed + number), number, frames)
        source = random.Random(seed + number)
        new_word = "" if edit == "none" else source.choice(_free_words(clip, edit))
        slot = source.randrange(len(clip.caption.objects))
        cases.append(VideoCase(f"{number:04d}", clip, slot, new_word, edit))
    return cases


def _free_words(clip: Clip, edit: str) -> list[str]:
    """Colours, or shapes, that no object of a clip has."""
    words = clip.scenes.settings.vocabulary
    used = {getattr(kind, edit) for kind in clip.caption.objects}
    listed = words.colours if edit == "colour" else words.shapes
    return [name for name in listed if name not in used]


def _distinct(generator: torch.Generator, number: int, frames: int) -> Clip:
    """Draw a clip whose objects differ in colour and in shape."""
    weights = EITHER_NUMBER[number % len(EITHER_NUMBER)]
    settings = ClipSettings(frames=frames, world=WorldSettings(count_weights=weights))
    while True:
        clip = draw_clip(generator, settings)
        kinds: Sequence[Any] = clip.caption.objects
        if len({k.colour for k in kinds}) == len({k.shape for k in kinds}) == len(kinds):
            return clip
