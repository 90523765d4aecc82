"""Edits of rendered scenes whose right answer is known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from attnctl.shapes.captions import Caption, ObjectKind, scene_kinds
from attnctl.shapes.vocabulary import BACKGROUNDS, PALETTE
from attnctl.shapes.world import SceneBatch, WorldSettings, draw_scenes, render

KINDS = ("colour", "shape", "add", "remove", "background")
"""What is asked for, in turn."""

MARGIN_PX = 3
"""So far beyond the box of a changed object its region reaches."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EditCase:
    """One edit.

    Attributes:
        name: Its id: number and kind.
        kind: One of `KINDS`.
        source: Caption of the source.
        target: Caption of what it should become.
        picture: The source, rendered.
        answer: The target, rendered: one right answer.
        changed: The object that is changed, taken away or put in; ``None``: the background.
        becomes: What it becomes; ``None`` if it goes, or for the background.
        background: Background of the target.
        kept: The other objects.
        boxes: Boxes of the kept objects in pixels.
        region: Where the picture may change, bool ``(H, W)``; an added object's place is not
            prescribed, so there the region is empty.
        seed: Of noise that a method draws.
    """

    name: str
    kind: str
    source: Caption
    target: Caption
    picture: Image.Image
    answer: Image.Image
    changed: ObjectKind | None
    becomes: ObjectKind | None
    background: str
    kept: tuple[ObjectKind, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    region: Mask
    seed: int

    @property
    def swaps_words(self) -> bool:
        """Whether both captions have the same number of words."""
        return self.kind in ("colour", "shape", "background")

    @property
    def phrase(self) -> str:
        """What the edit is about, for techniques that take an attribute."""
        if self.kind == "background":
            return f"a {self.background} background"
        return f"a {self.changed if self.becomes is None else self.becomes}"

    @property
    def subjects(self) -> tuple[list[str], list[str]]:
        """Words of the edited object in the source and in the target caption."""
        if self.changed is None:
            return ["background"], ["background"]
        if self.kind == "add":
            return [], [self.changed.colour, self.changed.shape]
        old = [self.changed.colour, self.changed.shape]
        return old, [] if self.becomes is None else [self.becomes.colour, self.becomes.shape]


def make_cases(split: str, count: int) -> list[EditCase]:
    """Make edits, a fifth of each kind; the same arguments always give the same list.

    Args:
        split: Name of the list; different names share no scene and no seed.
        count: Number of edits; a shorter list is the beginning of a longer one.
    """
    digest = hashlib.sha256(f"attnctl edits {split}".encode()).digest()
    first = int.from_bytes(digest[:5], "big") << 20
    return [_make(place, first + place) for place in range(count)]


def _make(place: int, seed: int) -> EditCase:
    kind = KINDS[place % len(KINDS)]
    source = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(1, source, WorldSettings(count_weights=(0.0, 1.0, 0.0)))
    before, after = _changed(kind, scenes, source)
    names = scenes.background_names
    backgrounds = [names[int(x.background[0])] for x in (before, after)]
    captions = [
        Caption(tuple(scene_kinds(x, 0)), name if kind == "background" else None)
        for x, name in zip((before, after), backgrounds, strict=True)
    ]
    pictures = [_picture(x) for x in (before, after)]
    kept = slice(0, 2) if kind == "background" else slice(0, 1)
    objects = scenes.scene(0).objects
    listed = scene_kinds(scenes, 0)
    return EditCase(
        name=f"{place:05d}-{kind}",
        kind=kind,
        source=captions[0],
        target=captions[1],
        picture=pictures[0],
        answer=pictures[1],
        changed=None if kind == "background" else listed[1],
        becomes=None if kind in ("background", "remove") else scene_kinds(after, 0)[1],
        background=backgrounds[1],
        kept=tuple(listed[kept]),
        boxes=tuple(o.box for o in objects[kept]),
        region=_region(kind, objects[1].box, before),
        seed=seed,
    )


def _changed(
    kind: str, scenes: SceneBatch, source: torch.Generator
) -> tuple[SceneBatch, SceneBatch]:
    """The scene before and after the edit; its second object is the one that is edited."""
    words = scenes.settings.vocabulary
    if kind == "background":
        code = (int(scenes.background[0]) + int(torch.randint(1, 3, (1,), generator=source))) % 3
        low, high = list(BACKGROUNDS.values())[code]
        ground = torch.tensor([[(low + high) / 2, 0.0, 0.0]])
        return scenes, replace(scenes, background=torch.tensor([code]), ground=ground)
    if kind in ("add", "remove"):
        alone = replace(scenes, present=torch.tensor([[True, False, False]]))
        return (alone, scenes) if kind == "add" else (scenes, alone)
    names = words.colours if kind == "colour" else words.shapes
    codes = (scenes.colour if kind == "colour" else scenes.shape).clone()
    # Never what the other object has: its colour, or shape, would not tell the two apart.
    free = [c for c in range(len(names)) if c not in (int(codes[0, 0]), int(codes[0, 1]))]
    codes[0, 1] = free[int(torch.randint(len(free), (1,), generator=source))]
    if kind == "shape":
        return scenes, replace(scenes, shape=codes)
    paint = scenes.paint.clone()
    paint[0, 1] = torch.tensor(PALETTE[words.colours[int(codes[0, 1])]])
    return scenes, replace(scenes, colour=codes, paint=paint)


def _picture(scenes: SceneBatch) -> Image.Image:
    pixels = (render(scenes)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def _region(kind: str, box: tuple[float, float, float, float], before: SceneBatch) -> Mask:
    size = before.settings.size_px
    if kind == "background":
        pixels = render(before)[0]
        coloured = (pixels.amax(0) - pixels.amin(0) > 0.28).numpy()
        inner = cast(Mask, ndimage.binary_erosion(coloured, iterations=MARGIN_PX))
        return ~inner
    region = np.zeros((size, size), dtype=bool)
    return region if kind == "add" else with_box(region, box)


def with_box(region: Mask, box: tuple[float, float, float, float]) -> Mask:
    """A region with a box and its margin in it."""
    left, top, right, bottom = box
    wider = region.copy()
    rows = slice(max(0, int(top) - MARGIN_PX), int(np.ceil(bottom)) + MARGIN_PX)
    columns = slice(max(0, int(left) - MARGIN_PX), int(np.ceil(right)) + MARGIN_PX)
    wider[rows, columns] = True
    return wider
