"""A clip in memory, and which frames of a file it takes."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnctl.errors import VideoError

MAX_BYTES = 8 * 2**30
"""Most memory that the frames of one clip may take."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FrameRange:
    """Frames ``start``, ``start + stride``, ... before ``stop``; ``None`` is the end.

    Raises:
        VideoError: it can hold no frame.
    """

    start: int = 0
    stop: int | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.stride < 1 or (self.stop is not None and self.stop <= self.start):
            raise VideoError(
                f"frames {self}: start from 0, stop behind the start, a stride of at least 1"
            )

    def __str__(self) -> str:
        stop = "" if self.stop is None else self.stop
        return f"{self.start}-{stop}" + (f" every {self.stride}" if self.stride > 1 else "")

    @classmethod
    def parse(cls, text: str | None, stride: int = 1) -> "FrameRange":
        """Read ``10-50``, ``10-``, ``-50``; stop is excluded.

        Raises:
            VideoError: it is written otherwise.
        """
        if text is None:
            return cls(stride=stride)
        match = re.fullmatch(r"\s*(\d*)\s*-\s*(\d*)\s*", text)
        if match is None or not any(match.groups()):
            raise VideoError(f"frames {text!r}; write 10-50, 10- or -50 (the last is left out)")
        start, stop = match.groups()
        return cls(int(start or 0), int(stop) if stop else None, stride)

    def of(self, count: int, name: str) -> range:
        """Indices among the ``count`` frames of a file.

        Raises:
            VideoError: none of them lies in the file.
        """
        chosen = range(count)[self.start : self.stop : self.stride]
        if not chosen:
            there = f"it has {count}, 0 to {count - 1}" if count else "it has none"
            raise VideoError(f"{name!r}: no frame in the range {self}; {there}")
        return chosen


@dataclass(frozen=True, eq=False)
class Video:
    """Frames with a constant rate.

    Attributes:
        frames: ``(F, H, W, 3)`` uint8 RGB.
        rate: Frames a second, exact.
        source: File that they come from, whose sound can be copied.
        start: Where the first frame lies in the source, in seconds.
        has_audio: Whether the source has a sound track.
        notes: What was converted on the way, in words.
    """

    frames: Frames
    rate: Fraction
    source: Path | None = None
    start: Fraction = Fraction(0)
    has_audio: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.frames.ndim != 4 or self.frames.shape[3] != 3 or self.frames.dtype != np.uint8:
            raise VideoError(
                f"frames are (F, H, W, 3) uint8; got {self.frames.shape} {self.frames.dtype}"
            )
        if not len(self.frames) or self.rate <= 0:
            raise VideoError(
                f"a video has frames and a rate above 0, not {len(self.frames)} at {self.rate}"
            )

    @property
    def seconds(self) -> Fraction:
        """Length in seconds."""
        return len(self.frames) / self.rate

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.frames.shape[1]), int(self.frames.shape[2])

    def tensor(self) -> Tensor:
        """The frames as ``(F, 3, H, W)`` float32 in [0, 1]."""
        return torch.from_numpy(self.frames.copy()).permute(0, 3, 1, 2).float() / 255

    @staticmethod
    def of_tensor(frames: Tensor, rate: Fraction) -> "Video":
        """A clip from ``(F, 3, H, W)`` in [0, 1]."""
        values = (frames.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
        return Video(np.ascontiguousarray(values.permute(0, 2, 3, 1).numpy()), rate)


def check_size(frames: int, height: int, width: int, name: str) -> None:
    """Refuse a clip that does not fit into memory.

    Raises:
        VideoError: it would take more than :data:`MAX_BYTES`.
    """
    needed = frames * height * width * 3
    if needed > MAX_BYTES:
        raise VideoError(
            f"{name!r}: {frames} frames of {width} x {height} take {needed / 2**30:.1f} GiB,"
            f" at most {MAX_BYTES // 2**30} are read; take a range of frames or a stride"
        )
