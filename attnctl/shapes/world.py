"""The shapes world: random scenes of coloured shapes, rendered in batches.

A scene is described by tensors, so that thousands of them are drawn and rendered a second;
``SceneBatch.scene`` gives one of them as plain objects with boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from attnctl.shapes.distances import signed_distance
from attnctl.shapes.vocabulary import (
    BACKGROUNDS,
    MOST_OBJECTS,
    PALETTE,
    SMALL_VOCABULARY,
    Vocabulary,
)


@dataclass(frozen=True)
class WorldSettings:
    """How scenes are drawn.

    Attributes:
        size_px: Width and height of a picture.
        vocabulary: Colours and shapes in use.
        count_weights: Relative shares of scenes with one, two and three objects.
        radius_ranges: Smallest and largest radius for one, two and three objects,
            as fractions of ``size_px``.
        gap: Least distance between two boxes, and to the border, as a fraction of ``size_px``.
        colour_jitter: Largest change of a colour channel, in [0, 1].
        gradient: Largest brightness change of the background across the picture, in [0, 1].
    """

    size_px: int = 64
    vocabulary: Vocabulary = SMALL_VOCABULARY
    count_weights: tuple[float, float, float] = (0.35, 0.40, 0.25)
    radius_ranges: tuple[tuple[float, float], ...] = ((0.15, 0.26), (0.14, 0.21), (0.13, 0.175))
    gap: float = 0.02
    colour_jitter: float = 0.03
    gradient: float = 0.12

    def __post_init__(self) -> None:
        if self.size_px < 16:
            raise ValueError(f"size_px is {self.size_px}; shapes need at least 16 pixels")
        if len(self.radius_ranges) != MOST_OBJECTS or any(
            not 0 < low <= high < 0.5 for low, high in self.radius_ranges
        ):
            raise ValueError(
                f"radius_ranges is {self.radius_ranges}; give three pairs (low, high) in (0, 0.5)"
            )


@dataclass(frozen=True)
class SceneObject:
    """One object: names, centre and radius in pixels, angle in radians (clockwise)."""

    colour: str
    shape: str
    x_px: float
    y_px: float
    radius_px: float
    angle: float = 0.0

    @property
    def name(self) -> str:
        """Colour and shape as they stand in a caption, for example ``red circle``."""
        return f"{self.colour} {self.shape}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels; right and bottom are excluded."""
        r = self.radius_px
        return (self.x_px - r, self.y_px - r, self.x_px + r, self.y_px + r)


@dataclass(frozen=True)
class Scene:
    """One scene as plain objects."""

    size_px: int
    objects: tuple[SceneObject, ...]
    background: str


@dataclass(frozen=True)
class SceneBatch:
    """Many scenes as tensors; ``B`` scenes with room for three objects each.

    Attributes:
        settings: How the scenes were drawn.
        present: Which places hold an object, bool ``(B, 3)``; the first ones are filled first.
        colour: Colour codes, ``(B, 3)``.
        shape: Shape codes, ``(B, 3)``.
        x_px: Centres, ``(B, 3)``; likewise ``y_px``.
        radius_px: Radii, ``(B, 3)``.
        angle: Clockwise turn in radians, ``(B, 3)``.
        paint: Colours as drawn, ``(B, 3, 3)`` with RGB last, in [0, 1].
        background: Codes into ``BACKGROUNDS``, ``(B,)``.
        ground: Mean brightness and its change along x and y, ``(B, 3)``, in [0, 1].
    """

    settings: WorldSettings
    present: Tensor
    colour: Tensor
    shape: Tensor
    x_px: Tensor
    y_px: Tensor
    radius_px: Tensor
    angle: Tensor
    paint: Tensor
    background: Tensor
    ground: Tensor
    background_names: tuple[str, ...] = field(default=tuple(BACKGROUNDS))

    def __len__(self) -> int:
        return int(self.present.shape[0])

    def select(self, rows: Tensor) -> "SceneBatch":
        """Return the scenes at these indices."""
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    @staticmethod
    def join(batches: Sequence["SceneBatch"]) -> "SceneBatch":
        """Put batches with equal settings one after the other."""
        parts = [batch._tensors() for batch in batches]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return replace(batches[0], **joined)

    def _tensors(self) -> dict[str, Tensor]:
        values = ((item.name, getattr(self, item.name)) for item in fields(self))
        return {name: value for name, value in values if isinstance(value, Tensor)}

    def scene(self, index: int) -> Scene:
        """Return one scene as plain objects."""
        words = self.settings.vocabulary
        objects = tuple(
            SceneObject(
                colour=words.colours[int(self.colour[index, slot])],
                shape=words.shapes[int(self.shape[index, slot])],
                x_px=float(self.x_px[index, slot]),
                y_px=float(self.y_px[index, slot]),
                radius_px=float(self.radius_px[index, slot]),
                angle=float(self.angle[index, slot]),
            )
            for slot in range(int(self.present[index].sum()))
        )
        name = self.background_names[int(self.background[index])]
        return Scene(self.settings.size_px, objects, name)


def draw_scenes(
    count: int, generator: torch.Generator, settings: WorldSettings | None = None
) -> SceneBatch:
    """Draw random scenes; the same generator state gives the same scenes.

    Args:
        count: Number of scenes, at least 1.
        generator: Source of randomness, on the CPU.
        settings: How to draw them; the default is the small vocabulary at 64 pixels.

    Returns:
        Scenes whose objects are all different and do not overlap.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one scene")
    chosen = settings or WorldSettings()
    words = chosen.vocabulary
    weights = torch.tensor(chosen.count_weights)
    counts = torch.multinomial(weights, count, replacement=True, generator=generator) + 1
    present = torch.arange(MOST_OBJECTS)[None] < counts[:, None]
    kinds = torch.rand(count, len(words.colours) * len(words.shapes), generator=generator)
    codes = kinds.topk(MOST_OBJECTS, dim=1).indices
    colour, shape = codes // len(words.shapes), codes % len(words.shapes)
    centre, radius = _place(counts, present, generator, chosen)
    paint = torch.tensor([PALETTE[name] for name in words.colours])[colour]
    jitter = torch.rand(paint.shape, generator=generator) * 2 - 1
    background, ground = _draw_grounds(count, generator, chosen)
    return SceneBatch(
        settings=chosen,
        present=present,
        colour=colour,
        shape=shape,
        x_px=centre[..., 0],
        y_px=centre[..., 1],
        radius_px=radius,
        angle=torch.zeros(count, MOST_OBJECTS),
        paint=(paint + chosen.colour_jitter * jitter).clamp(0, 1),
        background=background,
        ground=ground,
    )


def _draw_grounds(
    count: int, generator: torch.Generator, settings: WorldSettings
) -> tuple[Tensor, Tensor]:
    background = torch.randint(len(BACKGROUNDS), (count,), generator=generator)
    ranges = torch.tensor(list(BACKGROUNDS.values()))[background]
    uniform = torch.rand(count, 4, generator=generator)
    level = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * uniform[:, 0]
    # Half of the backgrounds are plain.
    strength = settings.gradient * uniform[:, 1] * (uniform[:, 3] < 0.5)
    direction = uniform[:, 2] * 2 * torch.pi
    slopes = torch.stack([direction.cos(), direction.sin()], dim=1) * strength[:, None]
    return background, torch.cat([level[:, None], slopes], dim=1)


def _place(
    counts: Tensor, present: Tensor, generator: torch.Generator, settings: WorldSettings
) -> tuple[Tensor, Tensor]:
    """Draw centres ``(B, 3, 2)`` and radii ``(B, 3)`` in pixels, again until no boxes touch."""
    ranges = torch.tensor(settings.radius_ranges)[counts - 1] * settings.size_px
    gap = settings.gap * settings.size_px
    total = len(counts)
    centre, radius = torch.zeros(total, MOST_OBJECTS, 2), torch.zeros(total, MOST_OBJECTS)
    waiting = torch.arange(total)
    while len(waiting):
        low, high = ranges[waiting, :1], ranges[waiting, 1:]
        drawn = torch.rand(len(waiting), MOST_OBJECTS, 3, generator=generator)
        r = low + (high - low) * drawn[..., 0]
        room = (settings.size_px - 2 * (r + gap))[..., None]
        c = (r + gap)[..., None] + room * drawn[..., 1:]
        centre[waiting], radius[waiting] = c, r
        apart = (c[:, :, None] - c[:, None]).abs().amax(-1)
        touching = apart < r[:, :, None] + r[:, None] + gap
        both = present[waiting][:, :, None] & present[waiting][:, None]
        touching &= both & ~torch.eye(MOST_OBJECTS, dtype=torch.bool)
        waiting = waiting[touching.any(2).any(1)]
    return centre, radius


def render(scenes: SceneBatch) -> Tensor:
    """Render scenes with anti-aliased edges.

    Args:
        scenes: ``B`` scenes.

    Returns:
        Pictures ``(B, 3, size_px, size_px)``, float32 RGB in [0, 1].
    """
    size = scenes.settings.size_px
    pixel = torch.arange(size, dtype=torch.float32) + 0.5
    grid_y, grid_x = torch.meshgrid(pixel, pixel, indexing="ij")
    level, slope_x, slope_y = (part[:, None, None] for part in scenes.ground.unbind(1))
    ground = level + slope_x * (grid_x / size - 0.5) + slope_y * (grid_y / size - 0.5)
    picture = ground.clamp(0, 1)[:, None].repeat(1, 3, 1, 1)
    for slot in range(MOST_OBJECTS):
        for code, name in enumerate(scenes.settings.vocabulary.shapes):
            rows = (scenes.present[:, slot] & (scenes.shape[:, slot] == code)).nonzero()[:, 0]
            if len(rows):
                cover = _coverage(scenes, rows, slot, name, grid_x, grid_y)[:, None]
                paint = scenes.paint[rows, slot][:, :, None, None]
                picture[rows] = torch.lerp(picture[rows], paint, cover)
    return picture


def _coverage(
    scenes: SceneBatch, rows: Tensor, slot: int, shape: str, grid_x: Tensor, grid_y: Tensor
) -> Tensor:
    """Share of each pixel that an object covers, ``(rows, H, W)`` in [0, 1]."""
    radius = scenes.radius_px[rows, slot][:, None, None]
    x = (grid_x - scenes.x_px[rows, slot][:, None, None]) / radius
    y = (grid_y - scenes.y_px[rows, slot][:, None, None]) / radius
    angle = scenes.angle[rows, slot][:, None, None]
    if bool((angle != 0).any()):
        cos, sin = angle.cos(), angle.sin()
        x, y = cos * x + sin * y, cos * y - sin * x
    return (0.5 - signed_distance(shape, x, y) * radius).clamp(0, 1)
