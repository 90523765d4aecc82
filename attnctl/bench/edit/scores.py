"""Scores of an edited picture: was the edit made, is the rest still there, and how exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnctl.bench.edit.cases import EditCase, with_box
from attnctl.pipelines.edit_scores import ssim_map  # pyright: ignore[reportMissingImports]
from attnctl.shapes.captions import ObjectKind
from attnctl.shapes.verifier import Seen, look

MOST_PSNR = 60.0
"""Decibels of pictures that are equal."""

LEAST_OVERLAP = 0.4
"""Least intersection over union of an untouched object's box before and after."""

GREYS = (0.31, 0.72)
"""Brightness between dark, grey and light backgrounds."""

Pixels = NDArray[np.float64]


def score(case: EditCase, image: Image.Image) -> dict[str, Any]:
    """Score one edited picture.

    Returns:
        ``reached`` (the verifier sees what was asked for), ``kept`` (every untouched object is
        seen near its place), ``success`` (both), ``psnr`` in decibels and ``ssim`` to the source
        outside the edited region, ``psnr_all`` and ``ssim_all`` in the whole picture, ``seen``.
    """
    seen = look(image)
    before, after = _pixels(case.picture), _pixels(image)
    region = case.region
    added = [one.box for one in seen if case.kind == "add" and one.kind == case.becomes]
    if added:
        region = with_box(region, added[0])
    outside = ~region
    reached, kept = is_reached(case, seen, after), is_kept(case, seen)
    similarity = ssim_map(before, after)
    return {
        "reached": reached,
        "kept": kept,
        "success": reached and kept,
        "psnr": psnr(before[outside], after[outside]),
        "ssim": float(similarity[outside].mean()),
        "psnr_all": psnr(before, after),
        "ssim_all": float(similarity.mean()),
        "seen": ", ".join(map(str, seen)),
    }


def is_reached(case: EditCase, seen: list[Seen], pixels: Pixels) -> bool:
    """Whether the picture shows what the edit asked for."""
    kinds = [one.kind for one in seen]
    if case.kind == "background":
        return background_of(pixels) == case.background
    if case.kind == "remove":
        return case.changed not in kinds and len(seen) <= len(case.kept)
    if case.kind == "add":
        return case.becomes in kinds
    return case.becomes in kinds and case.changed not in kinds


def is_kept(case: EditCase, seen: list[Seen]) -> bool:
    """Whether every untouched object is where it was."""
    return all(_is_there(k, box, seen) for k, box in zip(case.kept, case.boxes, strict=True))


def _is_there(kind: ObjectKind, box: tuple[float, ...], seen: list[Seen]) -> bool:
    return any(one.kind == kind and _overlap(one.box, box) >= LEAST_OVERLAP for one in seen)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return width * height / (areas - width * height)


def background_of(pixels: Pixels) -> str:
    """Name the background by the median brightness of colourless pixels ``(H, W, 3)``."""
    colourless = pixels.max(2) - pixels.min(2) < 0.15
    if colourless.mean() < 0.1:
        return "coloured"
    level = float(np.median(pixels.mean(2)[colourless]))
    return "dark" if level < GREYS[0] else "grey" if level < GREYS[1] else "light"


def psnr(before: Pixels, after: Pixels) -> float:
    """Peak signal-to-noise ratio in decibels, at most `MOST_PSNR`; values in [0, 1]."""
    error = float(np.mean((before - after) ** 2)) if before.size else 0.0
    return MOST_PSNR if error == 0 else min(MOST_PSNR, -10 * float(np.log10(error)))


def _pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(np.float64) / 255
