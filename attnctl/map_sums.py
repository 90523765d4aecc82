"""Running sums of attention columns: one for each layer, head apart and step apart if asked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnctl.errors import SettingError

Grid = tuple[int, int, int]  # frames, rows, columns
Steps = tuple[int, int] | None
Heads = int | Sequence[int] | None


@dataclass
class RunningSum:
    """A sum over calls, ``(H | 1, T, frames, h, w)`` float32, and the number of calls."""

    total: Tensor | None = None
    calls: int = 0

    def add(self, maps: Tensor) -> None:
        """Add the maps of one call."""
        if self.total is None:
            self.total = maps.clone()
        else:
            self.total += maps
        self.calls += 1


@dataclass
class LayerSum:
    """What one attention site gave for one item at one grid size.

    Attributes:
        path: Path of the attention module.
        grid: Frames, rows and columns of its queries.
        heads: Number of its heads.
        tokens: Number of token columns.
        keep_heads: Whether heads are kept apart; else their mean is summed.
        keep_steps: Whether steps are kept apart too.
    """

    path: str
    grid: Grid
    heads: int
    tokens: int
    keep_heads: bool = False
    keep_steps: bool = False
    whole: RunningSum = field(default_factory=RunningSum)
    by_step: dict[int, RunningSum] = field(default_factory=dict[int, RunningSum])

    @property
    def nbytes(self) -> int:
        """Memory of the sums, in bytes."""
        sums = (part.total for part in (self.whole, *self.by_step.values()))
        return sum(total.nbytes for total in sums if total is not None)

    def add(self, step: int, columns: Tensor) -> None:
        """Add probabilities ``(H, Q, T)`` of one call.

        Raises:
            SettingError: H or T is not as before.
        """
        if columns.shape[0] != self.heads or columns.shape[2] != self.tokens:
            raise SettingError(
                f"{self.path!r} gave {self.heads} heads and {self.tokens} tokens before, now "
                f"{columns.shape[0]} and {columns.shape[2]}; call clear() between different runs"
            )
        maps = columns.detach().float()
        maps = maps if self.keep_heads else maps.mean(dim=0, keepdim=True)
        maps = maps.transpose(1, 2).reshape(-1, self.tokens, *self.grid)
        self.whole.add(maps)
        if self.keep_steps:
            self.by_step.setdefault(step, RunningSum()).add(maps)

    def mean(
        self, steps: Steps = None, heads: Heads = None, frame: int | None = None
    ) -> tuple[Tensor, int] | None:
        """Return the mean over calls, heads and frames, and the number of calls.

        Args:
            steps: ``(start, stop)``, stop excluded; None for all.
            heads: A head or several; None for all.
            frame: One frame; None for all.

        Returns:
            Maps ``(T, h, w)`` and the calls in them; None if there was no call in ``steps``.

        Raises:
            SettingError: ``steps`` or ``heads`` were not kept apart, or there is no such head or
                frame.
        """
        if steps is not None and not self.keep_steps:
            raise SettingError("steps were not kept apart; attach HeatMaps(keep_steps=True)")
        parts = [self.whole]
        if steps is not None:
            parts = [part for step, part in self.by_step.items() if steps[0] <= step < steps[1]]
        sums = [part.total for part in parts if part.total is not None]
        if not sums:
            return None
        calls = sum(part.calls for part in parts)
        maps = torch.stack(sums).sum(dim=0) / calls
        if heads is not None:
            maps = maps[self._head_list(heads)]
        if frame is None:
            return maps.mean(dim=(0, 2)), calls
        if not 0 <= frame < self.grid[0]:
            raise SettingError(f"frame {frame}: there are frames 0 to {self.grid[0] - 1}")
        return maps[:, :, frame].mean(dim=0), calls

    def weight(self, heads: Heads) -> int:
        """Count the heads that a mean stands for."""
        return self.heads if heads is None else len(self._head_list(heads))

    def _head_list(self, heads: int | Sequence[int]) -> list[int]:
        if not self.keep_heads:
            raise SettingError("heads were not kept apart; attach HeatMaps(keep_heads=True)")
        chosen = [heads] if isinstance(heads, int) else list(heads)
        if not chosen or not all(0 <= head < self.heads for head in chosen):
            raise SettingError(f"heads {chosen}: {self.path!r} has heads 0 to {self.heads - 1}")
        return chosen


def steps_shown(layers: Iterable[LayerSum]) -> str:
    """Say of which steps there are maps."""
    steps = sorted({step for layer in layers for step in layer.by_step})
    return f"there are maps of steps {steps[0]} to {steps[-1]}" if steps else "nothing was kept"
