"""What one browser page has made: its job, its pictures, their maps. Nobody else sees it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnctl.recipes import Recipe

from .job import Job

if TYPE_CHECKING:
    from attnctl.maps import AttentionMaps

MOST_SHOWN = 60
MOST_MAP_BYTES = 256 * 2**20
MOST_FILES = 12  # of clips: three results


@dataclass(slots=True)
class Shown:
    """One finished picture.

    Attributes:
        key: Number of the picture in this visit.
        recipe: Recipe of this one picture.
        image: The picture.
        plain: The same seed without techniques.
        file: Copy of the file for the visitor's browser, recipe included.
        caption: Seed and what the verifier saw.
        summary: What the techniques did.
        maps: Attention maps; dropped when newer ones need the memory.
        has_steps: Whether the maps are kept apart by step.
    """

    key: int
    recipe: Recipe
    image: Image.Image
    plain: Image.Image | None
    file: Path
    caption: str
    summary: str = ""
    maps: AttentionMaps | None = None
    has_steps: bool = False


class Visit:
    """State of one session; Gradio copies an empty one for each."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.shown: list[Shown] = []
        self.files: list[Path] = []
        self._keys = 0

    def __deepcopy__(self, memo: Any) -> Visit:
        """Give every session its own; there is nothing to copy."""
        return Visit()

    @property
    def is_busy(self) -> bool:
        """Whether a job of this visit waits or runs."""
        return self.job is not None and not self.job.snapshot.is_ended

    def next_key(self) -> int:
        """Number for the next picture."""
        self._keys += 1
        return self._keys

    def add(self, shown: Shown) -> None:
        """Put a picture in front; the oldest ones, and the oldest maps, make room."""
        self.shown.insert(0, shown)
        for old in self.shown[MOST_SHOWN:]:
            old.file.unlink(missing_ok=True)
        del self.shown[MOST_SHOWN:]
        kept = 0
        for one in self.shown:
            kept += one.maps.nbytes if one.maps is not None else 0
            if kept > MOST_MAP_BYTES and one is not shown:
                one.maps = None

    def hold(self, files: Iterable[Path]) -> None:
        """Keep the copies of a clip for the visitor's browser; the oldest ones make room."""
        self.files += files
        for old in self.files[:-MOST_FILES]:
            old.unlink(missing_ok=True)
        del self.files[:-MOST_FILES]

    def find(self, key: int | None) -> Shown | None:
        """The picture of that number, if it is still there."""
        return next((one for one in self.shown if one.key == key), None)
