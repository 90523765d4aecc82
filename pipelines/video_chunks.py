"""A clip in chunks: which frames are edited together, and where finished chunks are kept."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from attnctl.errors import VideoError
from attnctl.files import new_file, write_text
from attnctl.flow import ClipFlow
from attnctl.video.clip import Frames


@dataclass(frozen=True, slots=True)
class Chunk:
    """Frames that run in one batch.

    Attributes:
        number: Place among the chunks.
        frames: All frames of the batch, in order, context first.
        context: So many of them only show the look of what came before: the clip's first frame,
            and the frame before this chunk; their results are dropped.
    """

    number: int
    frames: tuple[int, ...]
    context: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Frames whose results are kept."""
        return self.frames[self.context :]


def chunks_of(frames: int, size: int) -> list[Chunk]:
    """Divide a clip into chunks of at most ``size`` frames, their context not counted.

    Chunks are as equal as they can be, so that the last one is not a single frame.
    """
    count = -(-frames // size)
    bounds = [round(i * frames / count) for i in range(count + 1)]
    found: list[Chunk] = []
    for number, (start, stop) in enumerate(pairwise(bounds)):
        before = sorted({0, start - 1}) if start else []
        found.append(Chunk(number, (*before, *range(start, stop)), len(before)))
    return found


def flow_of_chunk(flow: ClipFlow, chunk: Chunk) -> ClipFlow:
    """The clip's motion between the frames of a chunk; a gap between them counts as a cut."""
    frames = list(chunk.frames)
    part = flow.picked(frames)
    gaps = {i for i in range(len(frames) - 1) if frames[i + 1] != frames[i] + 1}
    return ClipFlow(part.forward, part.backward, tuple(sorted({*part.cuts, *gaps})))


class ChunkStore:
    """Finished chunks in a hidden folder beside the result, under a key of everything that counts.

    Args:
        out: Folder of the result.
        order: Plain values that decide about the result.
        frames: Pixels of the source.
    """

    def __init__(self, out: Path, order: Mapping[str, Any], frames: Frames) -> None:
        text = json.dumps(order, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode())
        digest.update(np.ascontiguousarray(frames).tobytes())
        self.key = digest.hexdigest()[:12]
        self.folder = out / f".video-edit-{self.key}"
        self._order = text

    def load(self, chunk: Chunk) -> Frames | None:
        """The frames of a finished chunk, or ``None``.

        Raises:
            VideoError: the file is damaged.
        """
        path = self._path(chunk)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return np.array(file["frames"])
        except Exception as error:  # whatever a broken archive gives
            raise VideoError(
                f"{str(path)!r} is damaged ({error}); delete it, and run again"
            ) from None

    def save(self, chunk: Chunk, frames: Frames) -> None:
        """Keep a finished chunk; the file appears only when it is whole."""
        if not self.folder.exists():
            write_text(self.folder / "order.json", self._order)
        with new_file(self._path(chunk)) as file:
            np.savez_compressed(file, frames=frames)

    def clear(self) -> None:
        """Delete the chunks of a run that is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, chunk: Chunk) -> Path:
        return self.folder / f"chunk-{chunk.number:04d}.npz"
