"""Rendered scenes with an object each, and another object that is to stand beside it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.bench.edit.cases import EditCase
from attnctl.ops.bounded_attention import Box
from attnctl.shapes.captions import Caption, ObjectKind, scene_kinds
from attnctl.shapes.vocabulary import BACKGROUNDS
from attnctl.shapes.world import SceneBatch, WorldSettings, draw_scenes, render

OWN_RADIUS = 0.3
"""Radius of the new object in its own picture, as a part of it."""

_TWO = WorldSettings(count_weights=(0.0, 1.0, 0.0))


@dataclass(frozen=True)
class SceneCase:
    """A scene, and an object that goes into it.

    Attributes:
        edit: The task as an edit that adds the object: captions, the scene, one right answer.
        subject: The object in a picture of its own, on another background.
        mask: White where that shows the object.
        box: Where it goes, in parts of the scene; the scene's own object lies outside.
    """

    edit: EditCase
    subject: Image.Image
    mask: Image.Image
    box: Box

    @property
    def name(self) -> str:
        """Its id, the place in the list."""
        return self.edit.name

    @property
    def scene(self) -> Image.Image:
        """The given scene."""
        return self.edit.picture

    @property
    def prompt(self) -> str:
        """Both objects, that of the scene first."""
        return str(self.edit.target)

    @property
    def kind(self) -> ObjectKind:
        """The new object."""
        return self.edit.target.objects[1]

    @cached_property
    def box_px(self) -> np.ndarray:
        """The box as pixels, bool ``(H, W)``."""
        width, height = self.scene.size
        left, top, right, bottom = self.box
        inside = np.zeros((height, width), bool)
        inside[
            round(top * height) : round(bottom * height), round(left * width) : round(right * width)
        ] = True
        return inside


def make_cases(split: str, count: int) -> list[SceneCase]:
    """Draw scenes; the same arguments always give the same list.

    Args:
        split: Name of the list; different names share no scene and no seed.
        count: Number of scenes; a shorter list is the beginning of a longer one.
    """
    digest = hashlib.sha256(f"attnctl scenes {split}".encode()).digest()
    first = int.from_bytes(digest[:5], "big") << 20
    return [_make(place, first + place) for place in range(count)]


def _make(place: int, seed: int) -> SceneCase:
    source = torch.Generator().manual_seed(seed)
    both = _distinct(source)
    old, new = scene_kinds(both, 0)
    before, added = both.scene(0).objects
    size = both.settings.size_px
    alone = replace(both, present=torch.tensor([[True, False, False]]))
    edit = EditCase(
        name=f"{place:05d}",
        kind="add",
        source=Caption((old,)),
        target=Caption((old, new)),
        picture=_picture(render(alone)),
        answer=_picture(render(both)),
        changed=new,
        becomes=new,
        background=both.background_names[int(both.background[0])],
        kept=(old,),
        boxes=(before.box,),
        region=np.zeros((size, size), dtype=bool),
        seed=seed,
    )
    left, top, right, bottom = added.box
    whole = math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)  # pixels
    left, top, right, bottom = (side / size for side in whole)
    subject, mask = _apart(both, source)
    return SceneCase(edit, subject, mask, (left, top, right, bottom))


def _distinct(source: torch.Generator) -> SceneBatch:
    """Draw a scene of two objects that differ in colour and in shape."""
    while True:
        scenes = draw_scenes(1, source, _TWO)
        first, second = scene_kinds(scenes, 0)
        if first.colour != second.colour and first.shape != second.shape:
            return scenes


def _apart(both: SceneBatch, source: torch.Generator) -> tuple[Image.Image, Image.Image]:
    """The second object of a scene in a picture of its own, and its mask."""
    code = (int(both.background[0]) + int(torch.randint(1, 3, (1,), generator=source))) % 3
    low, high = list(BACKGROUNDS.values())[code]
    middle, radius = torch.tensor([[both.settings.size_px / 2] * 3]), torch.full((1, 3), OWN_RADIUS)
    own = replace(
        both,
        present=torch.tensor([[False, True, False]]),
        x_px=middle,
        y_px=middle,
        radius_px=radius * both.settings.size_px,
        background=torch.tensor([code]),
        ground=torch.tensor([[(low + high) / 2, 0.0, 0.0]]),
    )
    covered = render(replace(own, paint=torch.ones(1, 3, 3), ground=torch.zeros(1, 3)))
    return _picture(render(own)), _picture((covered >= 0.5).float()).convert("L")


def _picture(rendered: Tensor) -> Image.Image:
    pixels = (rendered[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)
