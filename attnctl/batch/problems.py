"""Mistakes in a job file: all of them, each with its file, line and column."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnctl.errors import RecipeError

MAX_SHOWN = 200
"""More mistakes than these are counted, not shown."""

Spot = tuple[int, int]
"""Line and column, both from 1."""


class JobFileError(RecipeError):
    """A job file has mistakes; the message lists them, one a line."""


@dataclass(slots=True)
class Problems:
    """Collects mistakes; the same one at the same spot counts once.

    Attributes:
        name: The job file, as the user wrote it.
    """

    name: str
    _found: dict[tuple[Spot, str], None] = field(default_factory=dict[tuple[Spot, str], None])
    _others: int = 0

    def add(self, spot: Spot, text: str) -> None:
        """Note a mistake."""
        if (spot, text) in self._found:
            return
        if len(self._found) < MAX_SHOWN:
            self._found[spot, text] = None
        else:
            self._others += 1

    def __len__(self) -> int:
        """Number of mistakes found so far."""
        return len(self._found) + self._others

    def raise_any(self) -> None:
        """Stop here if there are mistakes.

        Raises:
            JobFileError: listing all of them in the order of the file.
        """
        if not self._found:
            return
        lines = [
            f"{self.name}:{line}:{column}: {text}" for (line, column), text in sorted(self._found)
        ]
        if self._others:
            lines.append(f"{self.name}: and {self._others:,} more mistakes")
        noun = "mistake" if len(self) == 1 else "mistakes"
        raise JobFileError(f"{len(self)} {noun} in the job file\n" + "\n".join(lines))
