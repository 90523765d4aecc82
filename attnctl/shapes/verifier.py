"""A program that looks at a picture of the shapes world and says what it sees.

Coloured pixels are those with enough chroma; each takes the hue of the nearest palette colour;
connected pixels of one colour are an object; its shape is the template, drawn from the same
distance functions, with the best intersection over union.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from attnctl.shapes.captions import Caption, ObjectKind, parse_caption
from attnctl.shapes.distances import signed_distance
from attnctl.shapes.vocabulary import PALETTE, SMALL_VOCABULARY, Vocabulary

Picture = Image.Image | NDArray[Any] | Tensor
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

# A component whose best template overlaps less may be two objects that touch.
TOUCHING_OVERLAP = 0.8


@dataclass(frozen=True)
class VerifierSettings:
    """Thresholds of the verifier.

    Attributes:
        vocabulary: Colours and shapes that may occur.
        chroma: Least chroma (largest minus smallest channel) of an object's pixel, in [0, 1].
        area: Least area of an object, as a share of the picture.
        overlap: Least intersection over union with a template for a shape to be recognised.
        purity: Least share of an object's inner pixels near its palette colour.
    """

    vocabulary: Vocabulary = SMALL_VOCABULARY
    chroma: float = 0.28
    area: float = 0.006
    overlap: float = 0.72
    purity: float = 0.65


@dataclass(frozen=True)
class Seen:
    """One object that the verifier sees.

    Attributes:
        colour: Palette name.
        shape: Shape name, or ``None`` if no template fits well enough.
        box: Left, top, right and bottom in pixels; right and bottom are excluded.
        overlap: Intersection over union with the best template, in [0, 1].
        purity: Share of inner pixels near the palette colour, in [0, 1].
    """

    colour: str
    shape: str | None
    box: tuple[float, float, float, float]
    overlap: float
    purity: float

    @property
    def kind(self) -> ObjectKind | None:
        """Colour and shape, or ``None`` if the shape was not recognised."""
        return ObjectKind(self.colour, self.shape) if self.shape else None

    def __str__(self) -> str:
        return f"{self.colour} {self.shape or 'blob'}"


@dataclass(frozen=True)
class Verdict:
    """What a picture shows of what a caption names.

    Attributes:
        wanted: The objects that the caption names.
        found: The objects that the picture shows.
        missing: Named objects that the picture does not show.
        extra: Shown objects that the caption does not name, duplicates included.
    """

    wanted: tuple[ObjectKind, ...]
    found: tuple[Seen, ...]
    missing: tuple[ObjectKind, ...]
    extra: tuple[Seen, ...]

    @classmethod
    def of(cls, wanted: Sequence[ObjectKind], found: Sequence[Seen]) -> "Verdict":
        """Compare what a caption names with what a picture shows."""
        left = list(found)
        missing: list[ObjectKind] = []
        for kind in wanted:
            match = next((seen for seen in left if seen.kind == kind), None)
            if match is None:
                missing.append(kind)
            else:
                left.remove(match)
        return cls(tuple(wanted), tuple(found), tuple(missing), tuple(left))

    @property
    def all_right(self) -> bool:
        """Whether every named object is there, in its colour and shape."""
        return not self.missing

    @property
    def exact(self) -> bool:
        """Whether every named object is there and nothing else."""
        return not self.missing and not self.extra

    @property
    def is_neglect(self) -> bool:
        """Whether the picture shows fewer objects, of any kind, than the caption names."""
        return len(self.found) < len(self.wanted)

    @property
    def is_absence(self) -> bool:
        """Whether something named has neither its colour nor its shape anywhere in the picture.

        Each shown object can stand for one named object, so that a duplicate hides nothing, and a
        blob of the right colour, or the right shape in a wrong one, is not an absence.
        """
        return _most_pairs(self.missing, self.extra) < len(self.missing)

    def label(self) -> str:
        """Say it in a few words, to print under a picture."""
        if self.exact:
            return "all right"
        parts = [f"no {kind}" for kind in self.missing]
        parts += [f"extra {seen}" for seen in self.extra]
        return ", ".join(parts)

    def box_of(self, kind: ObjectKind) -> tuple[float, float, float, float] | None:
        """Box of the largest object of this kind in the picture, or ``None``."""
        boxes = [seen.box for seen in self.found if seen.kind == kind]
        return max(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None)


def _most_pairs(kinds: Sequence[ObjectKind], shown: Sequence[Seen]) -> int:
    """Most named objects that can each have a shown one of their colour or shape to themselves."""
    if not kinds:
        return 0
    first, rest = kinds[0], kinds[1:]
    without = _most_pairs(rest, shown)
    likely = [i for i, s in enumerate(shown) if first.colour == s.colour or first.shape == s.shape]
    given = [_most_pairs(rest, [*shown[:i], *shown[i + 1 :]]) + 1 for i in likely]
    return max([without, *given])


def verify(
    image: Picture, caption: str | Caption, settings: VerifierSettings | None = None
) -> Verdict:
    """Compare a picture with a caption.

    Args:
        image: PIL picture; ``(H, W, 3)`` array, uint8 or float in [0, 1]; or ``(3, H, W)`` tensor
            in [0, 1].
        caption: A caption of the shapes world.
        settings: Thresholds.

    Returns:
        What was found, what is missing and what is extra.

    Raises:
        ValueError: The caption or the picture cannot be read.
    """
    wanted = (parse_caption(caption) if isinstance(caption, str) else caption).objects
    return Verdict.of(wanted, look(image, settings))


def look(image: Picture, settings: VerifierSettings | None = None) -> list[Seen]:
    """List the objects in a picture, largest first; arguments as for ``verify``."""
    chosen = settings or VerifierSettings()
    pixels = _to_pixels(image)
    coloured = pixels.max(2) - pixels.min(2) > chosen.chroma
    nearest, near = _nearest_colours(pixels, chosen.vocabulary.colours)
    least = chosen.area * coloured.size
    seen: list[tuple[int, Seen]] = []
    for code, colour in enumerate(chosen.vocabulary.colours):
        for mask in _components(coloured & (nearest == code), least):
            inner = _eroded(mask, 1)
            purity = float(near[inner].mean()) if inner.any() else 0.0
            if purity >= chosen.purity:
                seen.extend(_describe_parts(mask, colour, purity, least, chosen))
    return [found for _, found in sorted(seen, key=lambda pair: -pair[0])]


def _components(mask: BoolArray, least: float) -> list[BoolArray]:
    """Connected parts of a mask with at least so many pixels."""
    labels = cast("tuple[NDArray[np.int32], int]", ndimage.label(mask))[0]
    areas = np.bincount(labels.ravel())
    return [labels == number for number in range(1, len(areas)) if areas[number] >= least]


def _eroded(mask: BoolArray, rounds: int) -> BoolArray:
    return cast(BoolArray, ndimage.binary_erosion(mask, iterations=rounds))


def _describe_parts(
    mask: BoolArray, colour: str, purity: float, least: float, settings: VerifierSettings
) -> list[tuple[int, Seen]]:
    """Describe a component with its area; as several objects if it falls into good shapes."""
    whole = _describe(mask, colour, purity, settings)
    if whole.overlap < TOUCHING_OVERLAP:
        for rounds in range(1, 5):
            seeds = _components(_eroded(mask, rounds), least / 4)
            if len(seeds) > 1:
                masks = [part for part in _share_out(mask, seeds) if part.sum() >= least]
                parts = [_describe(part, colour, purity, settings) for part in masks]
                if len(parts) > 1 and min(part.overlap for part in parts) > TOUCHING_OVERLAP:
                    areas = [int(part.sum()) for part in masks]
                    return list(zip(areas, parts, strict=True))
    return [(int(mask.sum()), whole)]


def _share_out(mask: BoolArray, seeds: Sequence[BoolArray]) -> list[BoolArray]:
    """Give each pixel of a mask to the nearest seed."""
    distances = np.stack(
        [cast(FloatArray, ndimage.distance_transform_edt(~seed)) for seed in seeds]
    )
    nearest = distances.argmin(0)
    return [mask & (nearest == number) for number in range(len(seeds))]


def _to_pixels(image: Picture) -> FloatArray:
    """Bring a picture to ``(H, W, 3)`` float32 in [0, 1]."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB")).astype(np.float32) / np.float32(255)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a tensor picture is (3, H, W); this one is {tuple(image.shape)}")
        return image.detach().float().cpu().permute(1, 2, 0).numpy()
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an array picture is (H, W, 3); this one is {image.shape}")
    pixels = image.astype(np.float32)
    return pixels / np.float32(255) if image.dtype == np.uint8 else pixels


def _nearest_colours(
    pixels: FloatArray, colours: Sequence[str]
) -> tuple[NDArray[np.intp], BoolArray]:
    """Code of the nearest palette colour by direction from grey, and whether it is near in RGB."""
    palette = np.array([PALETTE[name] for name in colours], dtype=np.float32)
    away = pixels - pixels.mean(2, keepdims=True)
    directions = palette - palette.mean(1, keepdims=True)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    nearest = (away @ directions.T).argmax(2)
    distance = np.linalg.norm(pixels - palette[nearest], axis=2)
    return nearest, distance < 0.35


def _describe(mask: BoolArray, colour: str, purity: float, settings: VerifierSettings) -> Seen:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    overlaps = _template_overlaps(mask, settings.vocabulary.shapes)
    shape, overlap = max(overlaps.items(), key=lambda item: item[1])
    return Seen(
        colour=colour,
        shape=shape if overlap >= settings.overlap else None,
        box=(float(left), float(top), float(right), float(bottom)),
        overlap=overlap,
        purity=purity,
    )


@lru_cache(maxsize=16)
def _unit_moments(shape: str) -> tuple[float, float]:
    """Area of a unit shape, and how far below its centre its centroid lies."""
    grid = (torch.arange(400) + 0.5) / 200 - 1
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    inside = signed_distance(shape, x, y) < 0
    return float(inside.float().mean() * 4), float(y[inside].mean())


def _template_overlaps(mask: BoolArray, shapes: Sequence[str]) -> dict[str, float]:
    """Best intersection over union with each shape, at the mask's place and near its size."""
    ys, xs = np.nonzero(mask)
    area, centre_x, centre_y = len(ys), float(xs.mean()) + 0.5, float(ys.mean()) + 0.5
    margin = 3
    top, left = max(int(ys.min()) - margin, 0), max(int(xs.min()) - margin, 0)
    part = torch.from_numpy(
        mask[top : int(ys.max()) + margin + 1, left : int(xs.max()) + margin + 1].copy()
    )
    y = torch.arange(part.shape[0])[:, None] + top + 0.5
    x = torch.arange(part.shape[1])[None] + left + 0.5
    overlaps: dict[str, float] = {}
    for shape in shapes:
        unit_area, unit_drop = _unit_moments(shape)
        radius = (area / unit_area) ** 0.5
        # Three sizes in one batch.
        radii = radius * torch.tensor([0.95, 1.0, 1.05])[:, None, None]
        inside = (
            signed_distance(shape, (x - centre_x) / radii, (y - centre_y) / radii + unit_drop) < 0
        )
        both = (inside & part).sum((1, 2)).float()
        either = (inside | part).sum((1, 2)).float()
        overlaps[shape] = float((both / either).max())
    return overlaps
