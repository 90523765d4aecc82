"""Rules that say which pairs are allowed inside the partial blocks of a `BlockLayout`."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Band:
    """Allow keys near the query along the sequence; leading text is seen by all and sees all.

    Attributes:
        half_width: Largest distance, in groups, at least 0.
        text: Tokens at the start that take part in every pair, at least 0.
        group: Consecutive tokens after the text that share one position, at least 1: the frames
            of one place, if all frames of a place lie beside each other.
    """

    half_width: int
    text: int = 0
    group: int = 1

    def __post_init__(self) -> None:
        if self.half_width < 0 or self.text < 0 or self.group < 1:
            raise ValueError(f"{self} must have half_width >= 0, text >= 0 and group >= 1")

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Compare positions that broadcast; bool, True where the pair is allowed."""
        query_group = (queries - self.text).div(self.group, rounding_mode="floor")
        key_group = (keys - self.text).div(self.group, rounding_mode="floor")
        near = (query_group - key_group).abs() <= self.half_width
        return near | (queries < self.text) | (keys < self.text)


@dataclass(frozen=True, eq=False)
class SameId:
    """Allow pairs whose tokens carry the same number, such as one trajectory.

    Attributes:
        query_ids: ``(Q,)`` integers, one a query token.
        key_ids: ``(K,)`` integers, one a key token.
    """

    query_ids: Tensor
    key_ids: Tensor

    def __post_init__(self) -> None:
        for ids in (self.query_ids, self.key_ids):
            if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
                raise ValueError(
                    f"ids must be integers of shape (tokens,); got {ids.dtype} "
                    f"of shape {tuple(ids.shape)}"
                )

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Compare positions that broadcast; bool, True where the pair is allowed.

        Positions past the last token, in a ragged last block, take the last token's number.
        """
        query_ids = self.query_ids[queries.clamp(max=self.query_ids.numel() - 1)]
        return query_ids == self.key_ids[keys.clamp(max=self.key_ids.numel() - 1)]


@dataclass(frozen=True, eq=False)
class Bitmask:
    """Give each partial block its own element mask; equal masks are kept once.

    Attributes:
        tiles: ``(n, q_block, k_block)`` bool, True = attend.
        tile_of: Which tile each partial block has, int32, shaped as the layout's
            ``partial_index``.
    """

    tiles: Tensor
    tile_of: Tensor


Rule = Band | SameId | Bitmask
