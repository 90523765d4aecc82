"""Small clips to drop in."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from attnctl.video import Video, write_video

SOURCE = "a red square"
TARGET = "a blue square"


def square_frames(count: int, side: int = 64) -> np.ndarray:
    """A red square that moves to the right, ``(F, side, side, 3)`` uint8."""
    frames = np.full((count, side, side, 3), 90, np.uint8)
    for t in range(count):
        frames[t, side // 4 : side // 2, 2 * t : 2 * t + side // 4] = (215, 40, 40)
    return frames


def make_clip(path: Path, count: int = 3, side: int = 64, rate: int = 8) -> Path:
    """Write a clip of that many frames in the format of its ending."""
    frames = square_frames(count, side)
    if path.suffix != ".webp":
        return write_video(path, Video(frames, Fraction(rate)))[0]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=1000 // rate, lossless=True)
    return path
