"""Captions of the shapes world: writing, reading, training captions and prompt lists.

Grammar: ``a red circle``, ``a red circle and a blue square``, ``a red circle, a blue square and
a green cross``; each optionally with `` on a dark background``.
"""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attnctl.shapes.distances import DISTANCES
from attnctl.shapes.vocabulary import (
    BACKGROUNDS,
    MOST_OBJECTS,
    PALETTE,
    SMALL_VOCABULARY,
    Vocabulary,
)
from attnctl.shapes.world import SceneBatch


@dataclass(frozen=True)
class ObjectKind:
    """A colour and a shape, for example red and circle."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Caption:
    """What a caption says.

    Attributes:
        objects: One to three kinds, in the caption's order.
        background: ``light``, ``grey``, ``dark`` or ``None`` if the caption names none.
    """

    objects: tuple[ObjectKind, ...]
    background: str | None = None

    def __str__(self) -> str:
        names = [f"a {kind}" for kind in self.objects]
        text = " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
        return f"{text} on a {self.background} background" if self.background else text


@dataclass(frozen=True)
class Prompt:
    """A prompt for a benchmark.

    Attributes:
        text: The caption.
        objects: What it names.
        seed: Seed for the start noise; no two splits share one.
    """

    text: str
    objects: tuple[ObjectKind, ...]
    seed: int


@dataclass(frozen=True)
class CaptionSettings:
    """How training captions are written.

    Attributes:
        extra_share: Share of the captions of scenes with one or two objects that name one object
            more than the scene shows, as captions from the web do; it teaches neglect.
        background_share: Share of the captions that name the background.
    """

    extra_share: float = 0.2
    background_share: float = 0.3


def parse_caption(text: str) -> Caption:
    """Read a caption back.

    Args:
        text: A sentence of the grammar at the top of this file; case and spaces do not matter.

    Returns:
        The objects and the background that it names.

    Raises:
        ValueError: The text is not such a sentence; the message says which part is not.
    """
    words = " ".join(text.lower().replace(",", " , ").split())
    background = None
    match = re.fullmatch(r"(.*) on a (\w+) background", words)
    if match:
        words, background = match.group(1), match.group(2)
        if background not in BACKGROUNDS:
            raise ValueError(
                f'unknown background "{background}" in "{text}"; choose {", ".join(BACKGROUNDS)}'
            )
    objects = tuple(_parse_object(part, text) for part in re.split(r" and | , ", words))
    if len(objects) > MOST_OBJECTS:
        raise ValueError(f'"{text}" names {len(objects)} objects; at most {MOST_OBJECTS} fit')
    return Caption(objects, background)


def _parse_object(part: str, text: str) -> ObjectKind:
    words = part.split()
    if len(words) != 3 or words[0] != "a":
        raise ValueError(f'cannot read "{part}" in "{text}"; write objects as "a red circle"')
    if words[1] not in PALETTE or words[2] not in DISTANCES:
        raise ValueError(
            f'cannot read "{part}" in "{text}"; colours are {", ".join(PALETTE)}, '
            f"shapes are {', '.join(DISTANCES)}"
        )
    return ObjectKind(words[1], words[2])


def scene_kinds(scenes: SceneBatch, index: int) -> list[ObjectKind]:
    """Return the kinds of the objects of one scene, in drawing order."""
    words = scenes.settings.vocabulary
    return [
        ObjectKind(
            words.colours[int(scenes.colour[index, slot])],
            words.shapes[int(scenes.shape[index, slot])],
        )
        for slot in range(int(scenes.present[index].sum()))
    ]


def write_captions(
    scenes: SceneBatch, generator: torch.Generator, settings: CaptionSettings | None = None
) -> list[str]:
    """Write one caption a scene, objects in random order.

    Args:
        scenes: ``B`` scenes.
        generator: Source of randomness, on the CPU.
        settings: Shares of extra objects and of backgrounds.

    Returns:
        ``B`` captions.
    """
    chosen = settings or CaptionSettings()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    source = random.Random(seed)
    captions: list[str] = []
    for index in range(len(scenes)):
        kinds = scene_kinds(scenes, index)
        if len(kinds) < MOST_OBJECTS and source.random() < chosen.extra_share:
            kinds.append(_other_kind(kinds, scenes.settings.vocabulary, source))
        source.shuffle(kinds)
        named = source.random() < chosen.background_share
        background = scenes.background_names[int(scenes.background[index])] if named else None
        captions.append(str(Caption(tuple(kinds), background)))
    return captions


def _other_kind(
    kinds: Sequence[ObjectKind], vocabulary: Vocabulary, source: random.Random
) -> ObjectKind:
    while True:
        kind = ObjectKind(source.choice(vocabulary.colours), source.choice(vocabulary.shapes))
        if kind not in kinds:
            return kind


def prompts(
    split: str, objects: int, count: int, vocabulary: Vocabulary = SMALL_VOCABULARY
) -> list[Prompt]:
    """Make a list of prompts for a benchmark; the same arguments always give the same list.

    Args:
        split: ``tuning``, ``validation`` or any other name; different names have different
            prompts in a different order and share no seed.
        objects: Objects a prompt, 1 to 3; all of different colours and shapes.
        count: Number of prompts, 1 to 1,000,000.
        vocabulary: Colours and shapes to name.

    Returns:
        Prompts with their seeds; a shorter list is the beginning of a longer one.
    """
    if not 1 <= objects <= min(MOST_OBJECTS, len(vocabulary.shapes), len(vocabulary.colours)):
        raise ValueError(f"objects is {objects}; ask for 1 to {MOST_OBJECTS} objects a prompt")
    if not 1 <= count <= 1_000_000:
        raise ValueError(f"count is {count}; ask for 1 to 1,000,000 prompts")
    digest = hashlib.sha256(f"attnctl shapes {split}".encode()).digest()
    # Each split owns one block of 2**24 seeds among the 2**62 of its digest.
    first_seed = (int.from_bytes(digest[:5], "big") << 24) + (objects << 21)
    source = random.Random(first_seed)
    made: list[Prompt] = []
    for index in range(count):
        colours = source.sample(vocabulary.colours, objects)
        shapes = source.sample(vocabulary.shapes, objects)
        kinds = tuple(ObjectKind(c, s) for c, s in zip(colours, shapes, strict=True))
        made.append(Prompt(str(Caption(kinds)), kinds, (first_seed + index) % 2**62))
    return made
