"""Steps of a scheduler on a long clip, while the pipeline around it sees tiles of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from attnctl.engine.clock import is_shadowed
from attnctl.errors import AlreadyAttachedError
from attnctl.ops.ditctrl import blend_tiles, cut_tiles, place_tiles


class TiledSteps:
    """Stands in for ``scheduler.step``: blends what was predicted of tiles, and steps once.

    The pipeline's latents are tiles, cut out of one long clip. The guided predictions of all tiles
    are blended, the scheduler makes one step of the long clip, and its tiles are handed back. What
    a technique or callback adds to the tiles between two steps is blended too.

    Args:
        scheduler: Of the pipeline.
        starts: First frame of each tile of the batch.
        length: Frames of a tile.
        axis: Of the frames, the batch being 0.

    Attributes:
        long: The clip ``(1, ...)`` after the latest step; ``None`` before the first one.
    """

    def __init__(self, scheduler: Any, starts: Sequence[int], length: int, axis: int) -> None:
        self.long: Tensor | None = None
        self._scheduler, self._starts = scheduler, tuple(starts)
        self._length, self._axis = length, axis

    @contextmanager
    def installed(self) -> Generator[None]:
        """Take the place of the scheduler's ``step`` for the length of a block.

        Techniques must be attached inside the block: they work on tiles.

        Raises:
            AlreadyAttachedError: techniques are attached to the pipeline already.
        """
        if is_shadowed(self._scheduler):
            raise AlreadyAttachedError(
                "techniques are attached to this pipeline already, and would see the long clip, "
                "not its tiles; detach them, and give them with techniques="
            )
        original = self._scheduler.step

        @functools.wraps(original)
        def step(*args: Any, **kwargs: Any) -> Any:
            return self._step(original, *args, **kwargs)

        before = self._scheduler.__dict__.get("step")
        self._scheduler.__dict__["step"] = step
        try:
            yield
        finally:
            if before is None:
                del self._scheduler.__dict__["step"]
            else:
                self._scheduler.__dict__["step"] = before

    def take_over(self, tiles: Tensor) -> Tensor:
        """The long clip ``(1, ...)``, with what was added to its tiles since the latest step.

        Tiles that nobody touched give it back bit for bit.
        """
        long = place_tiles(tiles, self._starts, self._axis) if self.long is None else self.long
        self.long = long = long.to(tiles.dtype)
        added = tiles - cut_tiles(long, self._starts, self._length, self._axis)
        return long + blend_tiles(added, self._starts, self._axis)

    def _step(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs)
        prediction, tiles = given.arguments["model_output"], given.arguments["sample"]
        given.arguments["sample"] = self.take_over(tiles)
        given.arguments["model_output"] = blend_tiles(prediction, self._starts, self._axis)
        result = original(*given.args, **given.kwargs)
        self.long = long = result[0] if isinstance(result, tuple) else result.prev_sample
        cut = cut_tiles(long, self._starts, self._length, self._axis)
        if isinstance(result, tuple):
            return (cut, *result[1:])
        result.prev_sample = cut
        return result
