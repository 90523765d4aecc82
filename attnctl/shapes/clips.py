"""Clips of the shapes world: objects that move, turn and pass behind each other, with true flow.

Everything that estimation has to guess is known here: where each pixel goes, whether it is hidden
in the next frame, which object it belongs to, and where a scene ends.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from attnctl.flow import ClipFlow
from attnctl.shapes.captions import Caption, scene_kinds
from attnctl.shapes.distances import signed_distance
from attnctl.shapes.vocabulary import MOST_OBJECTS, PALETTE
from attnctl.shapes.world import SceneBatch, WorldSettings, draw_scenes, render

GROUND = -1
"""Object number of the background."""

_TRIES = 2000


@dataclass(frozen=True)
class ClipSettings:
    """How clips are drawn.

    Attributes:
        frames: Frames of a clip, at least 1.
        world: How its scenes are drawn.
        speed_px: Slowest and fastest object, in pixels a frame.
        swing: Largest turn of an object away from upright, in radians.
        period: Frames of one swing there and back.
        crossing: Objects may pass in front of each other; otherwise they stay apart.
        cuts: Scene cuts: frame t + 1 shows the same objects in another place, on another ground.
    """

    frames: int = 16
    world: WorldSettings = field(default_factory=WorldSettings)
    speed_px: tuple[float, float] = (0.5, 1.5)
    swing: float = 0.12
    period: float = 24.0
    crossing: bool = False
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        low, high = self.speed_px
        if self.frames < 1 or not 0 <= low <= high:
            raise ValueError(
                f"frames is {self.frames}, speed_px is {self.speed_px}; a clip has at least one"
                " frame, and speeds are two numbers from 0, the smaller one first"
            )
        if any(not 0 <= t < self.frames - 1 for t in self.cuts):
            raise ValueError(f"cuts {self.cuts} must lie in 0 to {self.frames - 2}")


@dataclass(frozen=True, eq=False)
class Clip:
    """One rendered clip.

    Attributes:
        settings: How it was drawn.
        scenes: One scene for each frame.
        frames: ``(F, 3, H, W)`` float32 in [0, 1].
        objects: Topmost object of each pixel, ``(F, H, W)`` int64; :data:`GROUND` for none.
        flow: The true motion, both ways, with the cuts.
        visible: Pixels of frame t that are seen in frame t + 1, bool ``(F - 1, H, W)``.
    """

    settings: ClipSettings
    scenes: SceneBatch
    frames: Tensor
    objects: Tensor
    flow: ClipFlow
    visible: Tensor

    @property
    def caption(self) -> Caption:
        """What every frame shows."""
        return Caption(tuple(scene_kinds(self.scenes, 0)))

    def recoloured(self, slot: int, colour: str) -> "Clip":
        """The same clip with one object in another colour: what a perfect edit gives.

        Raises:
            ValueError: there is no such object, or the vocabulary lacks the colour.
        """
        words = self.scenes.settings.vocabulary
        if not 0 <= slot < len(self.caption.objects) or colour not in words.colours:
            raise ValueError(
                f"object {slot} in {colour!r}; the clip has {len(self.caption.objects)} objects,"
                f" colours are {', '.join(words.colours)}"
            )
        code, paint = self.scenes.colour.clone(), self.scenes.paint.clone()
        code[:, slot] = words.colours.index(colour)
        paint[:, slot] = torch.tensor(PALETTE[colour])
        scenes = replace(self.scenes, colour=code, paint=paint)
        return replace(self, scenes=scenes, frames=render(scenes))

    def reshaped(self, slot: int, shape: str) -> "Clip":
        """The same clip with one object in another shape, which covers other pixels.

        Raises:
            ValueError: there is no such object, or the vocabulary lacks the shape.
        """
        words = self.scenes.settings.vocabulary
        if not 0 <= slot < len(self.caption.objects) or shape not in words.shapes:
            raise ValueError(
                f"object {slot} as {shape!r}; the clip has {len(self.caption.objects)} objects,"
                f" shapes are {', '.join(words.shapes)}"
            )
        code = self.scenes.shape.clone()
        code[:, slot] = words.shapes.index(shape)
        return make_clip(replace(self.scenes, shape=code), self.settings)


def draw_clip(generator: torch.Generator, settings: ClipSettings | None = None) -> Clip:
    """Draw a random clip; the same generator state gives the same clip.

    Args:
        generator: Source of randomness, on the CPU.
        settings: How to draw it.

    Raises:
        ValueError: objects this fast cannot stay apart for so long.
    """
    chosen = settings or ClipSettings()
    return make_clip(draw_moving_scenes(generator, chosen), chosen)


def draw_moving_scenes(generator: torch.Generator, settings: ClipSettings) -> SceneBatch:
    """Draw the scenes of a clip's frames alone, without pictures and flow.

    Raises:
        ValueError: objects this fast cannot stay apart for so long.
    """
    starts = [0, *(t + 1 for t in sorted(settings.cuts)), settings.frames]
    lengths = [stop - start for start, stop in pairwise(starts)]
    first = _draw_shot(lengths[0], generator, settings, None)
    shots = [first, *(_draw_shot(length, generator, settings, first) for length in lengths[1:])]
    return SceneBatch.join(shots)


def make_clip(scenes: SceneBatch, settings: ClipSettings) -> Clip:
    """Render a clip and compute its true motion from the scenes of its frames."""
    objects = topmost(scenes)
    now = torch.arange(len(scenes))
    forward, visible = _motion(scenes, objects, now[:-1], now[1:])
    backward, _ = _motion(scenes, objects, now[1:], now[:-1])
    for t in settings.cuts:
        forward[t] = backward[t] = 0.0
        visible[t] = False
    flow = ClipFlow(forward, backward, tuple(sorted(settings.cuts)))
    return Clip(settings, scenes, render(scenes), objects, flow, visible)


def topmost(scenes: SceneBatch) -> Tensor:
    """Slot of the object in which each pixel lies, ``(B, H, W)``; later slots are on top."""
    places = _pixel_middles(scenes.settings.size_px).expand(len(scenes), 2, -1, -1)
    rows = torch.arange(len(scenes))
    found = torch.full((len(scenes), *places.shape[2:]), GROUND)
    for slot in range(MOST_OBJECTS):
        found = torch.where(_covers(scenes, rows, slot, places), slot, found)
    return found


def _motion(
    scenes: SceneBatch, objects: Tensor, start: Tensor, stop: Tensor
) -> tuple[Tensor, Tensor]:
    """Displacement of each pixel ``(B, 2, H, W)``, and whether it is still seen ``(B, H, W)``."""
    size = scenes.settings.size_px
    places = _pixel_middles(size).expand(len(start), 2, -1, -1)
    moved = places.clone()
    for slot in range(MOST_OBJECTS):
        x0, y0, x1, y1 = (
            part[rows, slot][:, None, None]
            for rows in (start, stop)
            for part in (scenes.x_px, scenes.y_px)
        )
        turn = (scenes.angle[stop, slot] - scenes.angle[start, slot])[:, None, None]
        x, y = places[:, 0] - x0, places[:, 1] - y0
        target = torch.stack(
            [x1 + turn.cos() * x - turn.sin() * y, y1 + turn.sin() * x + turn.cos() * y], 1
        )
        moved = torch.where((objects[start] == slot)[:, None], target, moved)
    seen = ((moved >= 0) & (moved <= size)).all(1)
    for slot in range(MOST_OBJECTS):
        above = objects[start] < slot
        seen &= ~(above & _covers(scenes, stop, slot, moved))
    return moved - places, seen


def _covers(scenes: SceneBatch, rows: Tensor, slot: int, places: Tensor) -> Tensor:
    """Whether an object covers points ``(B, 2, H, W)`` in pixels, bool ``(B, H, W)``."""
    inside = torch.zeros(len(rows), *places.shape[2:], dtype=torch.bool)
    for code, name in enumerate(scenes.settings.vocabulary.shapes):
        some = (scenes.present[rows, slot] & (scenes.shape[rows, slot] == code)).nonzero()[:, 0]
        if not len(some):
            continue
        row = rows[some]
        radius, middle_x, middle_y, angle = (
            part[row, slot][:, None, None]
            for part in (scenes.radius_px, scenes.x_px, scenes.y_px, scenes.angle)
        )
        x, y = (places[some, 0] - middle_x) / radius, (places[some, 1] - middle_y) / radius
        cos, sin = angle.cos(), angle.sin()
        inside[some] = signed_distance(name, cos * x + sin * y, cos * y - sin * x) < 0
    return inside


def _pixel_middles(size: int) -> Tensor:
    """Horizontal and vertical place of each pixel's middle, ``(2, H, W)``."""
    middle = torch.arange(size, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([x, y])


def _draw_shot(
    length: int, generator: torch.Generator, settings: ClipSettings, kinds: SceneBatch | None
) -> SceneBatch:
    """Draw scenes of one shot, with the objects of ``kinds`` if it is given."""
    for _ in range(_TRIES):
        still = draw_scenes(1, generator, settings.world)
        if kinds is not None and not bool((still.present == kinds.present[:1]).all()):
            continue
        moving = _move(still.select(torch.zeros(length, dtype=torch.long)), generator, settings)
        if kinds is not None:
            same = torch.zeros(length, dtype=torch.long)
            known = kinds.select(same)
            moving = replace(moving, colour=known.colour, shape=known.shape, paint=known.paint)
        if settings.crossing or not _touches(moving):
            return moving
    raise ValueError(
        f"no clip of {settings.frames} frames at {settings.speed_px} pixels a frame was found whose"
        " objects stay apart; take slower or fewer objects, or crossing=True"
    )


def _move(scenes: SceneBatch, generator: torch.Generator, settings: ClipSettings) -> SceneBatch:
    """Let each object drift, bounce off the border and swing."""
    low, high = settings.speed_px
    drawn = torch.rand(4, MOST_OBJECTS, generator=generator)
    speed, heading = low + (high - low) * drawn[0], drawn[1] * 2 * torch.pi
    time = torch.arange(len(scenes), dtype=torch.float32)[:, None]
    size, margin = settings.world.size_px, scenes.radius_px + 1
    x = _bounce(scenes.x_px + time * speed * heading.cos(), margin, size - margin)
    y = _bounce(scenes.y_px + time * speed * heading.sin(), margin, size - margin)
    phase = 2 * torch.pi * (time / settings.period + drawn[2])
    angle = settings.swing * drawn[3] * phase.sin()
    return replace(scenes, x_px=x, y_px=y, angle=angle)


def _bounce(place: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Fold a straight way back into [low, high]."""
    span = (high - low).clamp_min(1e-3)
    folded = torch.remainder(place - low, 2 * span)
    return low + torch.minimum(folded, 2 * span - folded)


def _touches(scenes: SceneBatch) -> bool:
    """Whether boxes of two objects overlap in any frame."""
    gap = scenes.settings.gap * scenes.settings.size_px
    x, y, r = scenes.x_px, scenes.y_px, scenes.radius_px
    apart_x = (x[:, :, None] - x[:, None]).abs()
    apart_y = (y[:, :, None] - y[:, None]).abs()
    near = torch.maximum(apart_x, apart_y) < r[:, :, None] + r[:, None] + gap
    both = scenes.present[:, :, None] & scenes.present[:, None]
    return bool((near & both & ~torch.eye(MOST_OBJECTS, dtype=torch.bool)).any())
