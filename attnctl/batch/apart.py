"""Compute a few products picture by picture, so that a picture does not depend on its company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)


class PicturesApart(TorchFunctionMode):
    """Inside the block, convolutions and small linear layers see one picture at a time.

    Libraries choose another way to add up for another number of rows: for convolutions, and for
    linear layers over a handful of rows such as the embedding of the timestep. Done one picture at
    a time these give each picture the bits that it has alone; what remains goes through the batch.

    Args:
        pictures: Number of pictures; of a batch of ``R`` rows, row ``r`` belongs to picture
            ``r % pictures``, as pipelines order guidance branches.
    """

    def __init__(self, pictures: int) -> None:
        super().__init__()
        self._pictures = pictures

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one torch function, apart if it is one of these."""
        options = kwargs or {}
        if self._is_sensitive(func, args):
            return self._apart(func, args[0], args[1:], options)
        return func(*args, **options)

    def _is_sensitive(self, func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        if func is not F.linear and func not in _CONVOLUTIONS:
            return False
        if not args or not isinstance(args[0], Tensor):
            return False
        rows = args[0]
        if func is F.linear and rows.ndim != 2:
            return False
        return len(rows) > 1 and len(rows) % self._pictures == 0

    def _apart(
        self, func: Callable[..., Any], rows: Tensor, rest: tuple[Any, ...], options: dict[str, Any]
    ) -> Tensor:
        n = self._pictures
        parts = [func(rows[picture::n].contiguous(), *rest, **options) for picture in range(n)]
        return torch.stack(parts, dim=1).flatten(0, 1)  # (R / n, n, ...): row r again r % n
