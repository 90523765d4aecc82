"""Which blocks of an attention matrix are computed: the one input of every sparse kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import InitVar, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attnctl.kernels.analytic import blocks_of_rule
from attnctl.kernels.blocking import (
    BlockLists,
    Sizes,
    check_lists,
    check_order,
    list_blocks,
    list_known,
    sort_blocks,
)
from attnctl.kernels.layout_parts import (
    fingerprint,
    kept_pairs,
    marks,
    partial_tiles,
    parts_on,
    require_bool,
)
from attnctl.kernels.masks import as_four_axes
from attnctl.kernels.rules import Band, Bitmask, Rule, SameId

PARTIAL_WORK = 1.75  # a partial block's work as a share of a full one's, by their instructions

Pattern = Callable[[Tensor, Tensor], Tensor]  # (queries, keys) positions that broadcast -> bool


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """A sparse attention mask, cut into blocks of queries x keys.

    A block is *full* (every pair allowed), *partial* (its pairs follow ``rule``) or left out. The
    two lists never share a block. Lists may be shared by the batch, the heads, or both (axes of
    size 1). Two layouts are equal if they describe the same blocks in the same form.

    Attributes:
        q_block: Query tokens in a block: a multiple of 8, at least 8.
        k_block: Key tokens in a block, likewise.
        q_tokens: Query tokens Q; the last block may be ragged.
        k_tokens: Key tokens K; likewise.
        full_count: int32 ``(B | 1, H | 1, query blocks)``.
        full_index: int32 ``(B | 1, H | 1, query blocks, longest)``: key blocks in rising order;
            only the first ``full_count`` entries count.
        partial_count: As ``full_count``.
        partial_index: As ``full_index``.
        rule: What is allowed inside partial blocks; None if there are none. Its positions count
            in the layout's own order.
        order: ``(tokens,)`` permutation or None: position i of the layout is token ``order[i]``,
            for queries and keys alike.

    The argument ``trusted`` leaves out the checks of the lists, which would make a GPU wait: the
    constructors below made them.

    Raises:
        ValueError: Sizes do not fit, an index lies outside, a list does not rise, a block is in
            both lists, or a partial block has no rule.
    """

    q_block: int
    k_block: int
    q_tokens: int
    k_tokens: int
    full_count: Tensor
    full_index: Tensor
    partial_count: Tensor
    partial_index: Tensor
    rule: Rule | None = None
    order: Tensor | None = None
    trusted: InitVar[bool] = False

    def __post_init__(self, trusted: bool) -> None:
        for name in ("q_block", "k_block"):
            size = getattr(self, name)
            if size < 8 or size % 8:
                raise ValueError(f"{name}={size} must be a multiple of 8, at least 8")
        if not trusted:
            self._check_lists()

    def _check_lists(self) -> None:
        for name in ("full", "partial"):
            lists = getattr(self, f"{name}_count"), getattr(self, f"{name}_index")
            check_lists(name, *lists, self.q_blocks, self.k_blocks)
        if self.full_count.shape != self.partial_count.shape:
            raise ValueError("full and partial lists must have the same batch and head axes")
        if bool((marks(self, "full") & marks(self, "partial")).any()):
            raise ValueError("a block is in both lists; its keys would count twice")
        if self.order is not None:
            check_order(self.order, self.q_tokens, self.k_tokens)
        if self.rule is None and self.partial_index.shape[-1]:
            raise ValueError("the layout lists partial blocks but has no rule for them")
        if isinstance(self.rule, Bitmask) and self.rule.tile_of.shape != self.partial_index.shape:
            raise ValueError(
                f"tile_of has shape {tuple(self.rule.tile_of.shape)}, but the partial blocks "
                f"{tuple(self.partial_index.shape)}"
            )

    @classmethod
    def from_block_mask(
        cls, mask: Tensor, q_block: int, k_block: int, q_tokens: int, k_tokens: int
    ) -> BlockLayout:
        """Take whole blocks.

        Args:
            mask: bool ``(B | 1, H | 1, query blocks, key blocks)``, True = compute; leading axes
                may be left out.
            q_block: Query tokens in a block.
            k_block: Key tokens in a block.
            q_tokens: Query tokens.
            k_tokens: Key tokens.

        Raises:
            ValueError: The mask is not bool, or its size does not fit.
        """
        mask = as_four_axes(require_bool(mask))
        expected = (-(-q_tokens // q_block), -(-k_tokens // k_block))
        if mask.shape[-2:] != expected:
            raise ValueError(
                f"{q_tokens} x {k_tokens} tokens in blocks of {q_block} x {k_block} make "
                f"{expected} blocks; the mask has {tuple(mask.shape[-2:])}"
            )
        count = torch.zeros(mask.shape[:3], dtype=torch.int32, device=mask.device)
        nothing = (count, count.new_zeros(*mask.shape[:3], 0))
        sizes = Sizes(q_block, k_block, q_tokens, k_tokens)
        return cls(*sizes, *list_blocks(mask), *nothing, trusted=True)

    @classmethod
    def from_element_mask(
        cls, mask: Tensor, q_block: int = 64, k_block: int = 64, *, order: Tensor | None = None
    ) -> BlockLayout:
        """Cut an explicit mask into blocks.

        Args:
            mask: bool ``(B | 1, H | 1, Q, K)`` in the order of the tokens, True = attend; leading
                axes may be left out.
            q_block: Query tokens in a block.
            k_block: Key tokens in a block.
            order: See `BlockLayout`.
        """
        mask = as_four_axes(require_bool(mask)).cpu()
        if order is not None:
            check_order(order, *mask.shape[-2:])
            mask = mask[:, :, order][..., order]
        sizes = Sizes(q_block, k_block, mask.shape[-2], mask.shape[-1])
        lists = sort_blocks(
            lambda start, stop: mask[:, :, start:stop],
            sizes,
            keep_tiles=True,
        )
        return cls._from_lists(lists, sizes, None, order)

    @classmethod
    def from_pattern(
        cls,
        pattern: Pattern | Band | SameId,
        q_tokens: int,
        k_tokens: int | None = None,
        q_block: int = 64,
        k_block: int = 64,
        *,
        order: Tensor | None = None,
    ) -> BlockLayout:
        """Cut a mask that is given as a function of positions into blocks.

        A `Band` or `SameId` stays the layout's rule; it counts positions *after* ``order``. Any
        other function counts tokens, and the element masks of its partial blocks are kept.

        Args:
            pattern: ``(queries, keys) -> bool`` on integer positions that broadcast.
            q_tokens: Query tokens.
            k_tokens: Key tokens; None means as many as queries.
            q_block: Query tokens in a block.
            k_block: Key tokens in a block.
            order: See `BlockLayout`.
        """
        k_tokens = q_tokens if k_tokens is None else k_tokens
        if order is not None:
            check_order(order, q_tokens, k_tokens)
        rule = pattern if isinstance(pattern, Band | SameId) else None
        allowed: Pattern = rule.allowed if rule is not None else pattern  # type: ignore[assignment]
        queries = torch.arange(q_tokens, dtype=torch.int32)
        keys = torch.arange(k_tokens, dtype=torch.int32)
        if order is not None and rule is None:
            queries = keys = order.cpu().to(torch.int32)

        def strip(start: int, stop: int) -> Tensor:
            return allowed(queries[start:stop, None], keys[None]).expand(1, 1, -1, k_tokens)

        sizes = Sizes(q_block, k_block, q_tokens, k_tokens)
        known = None if rule is None else blocks_of_rule(rule, sizes)
        if known is None:
            lists = sort_blocks(strip, sizes, keep_tiles=rule is None)
        else:
            lists = list_known(*known, q_block, k_block)
        return cls._from_lists(lists, sizes, rule, order)

    @classmethod
    def _from_lists(
        cls, lists: BlockLists, sizes: Sizes, rule: Rule | None, order: Tensor | None
    ) -> BlockLayout:
        if lists.partial_index.shape[-1] == 0:
            rule = None
        elif rule is None:
            rule = Bitmask(lists.tiles, lists.tile_of)
        full, partial = (lists.full_count, lists.full_index), (lists.partial_count,)
        return cls(*sizes, *full, *partial, lists.partial_index, rule, order, trusted=True)

    @property
    def q_blocks(self) -> int:
        """Number of query blocks."""
        return -(-self.q_tokens // self.q_block)

    @property
    def k_blocks(self) -> int:
        """Number of key blocks."""
        return -(-self.k_tokens // self.k_block)

    @cached_property
    def density(self) -> float:
        """Share of the blocks that are computed, in [0, 1]: what a sparse kernel's time follows."""
        computed = int(self.full_count.sum()) + int(self.partial_count.sum())
        return computed / max(self.full_count.numel() * self.k_blocks, 1)

    @cached_property
    def kept_share(self) -> float:
        """Share of the pairs that are allowed, in [0, 1]."""
        lists = self.full_count.shape[0] * self.full_count.shape[1]
        return kept_pairs(self) / max(lists * self.q_tokens * self.k_tokens, 1)

    def strip_mask(self, start: int, stop: int) -> Tensor:
        """Expand query blocks ``start`` to ``stop`` into pairs, in the layout's order.

        Returns:
            bool ``(B | 1, H | 1, rows, K)``.
        """
        full = marks(self, "full")[:, :, start:stop]
        inner = (-1, -1, -1, self.q_block, -1, self.k_block)
        mask = full[:, :, :, None, :, None].expand(inner)
        if self.rule is not None:
            mask = mask | partial_tiles(self, self.rule, start, stop)
        rows = min(stop * self.q_block, self.q_tokens) - start * self.q_block
        return mask.flatten(4, 5).flatten(2, 3)[:, :, :rows, : self.k_tokens]

    def row_mask(self, tokens: Tensor) -> Tensor:
        """Expand the rows of some query tokens into pairs, in the order of the tokens.

        Args:
            tokens: ``(n,)`` integer positions.

        Returns:
            bool ``(B | 1, H | 1, n, K)``.
        """
        back = None if self.order is None else self.order.argsort()
        places = tokens if back is None else back[tokens]
        rows: list[Tensor] = []
        for place in places.tolist():
            block, row = divmod(place, self.q_block)
            rows.append(self.strip_mask(block, block + 1)[:, :, row])
        mask = torch.stack(rows, dim=2)
        return mask if back is None else mask[..., back]

    def element_mask(self) -> Tensor:
        """Expand the whole layout into pairs, in the order of the tokens.

        Returns:
            bool ``(B | 1, H | 1, Q, K)``, True = attend. Memory Q x K: for tests and small sizes.
        """
        mask = self.strip_mask(0, self.q_blocks)
        if self.order is None:
            return mask
        back = self.order.argsort()
        return mask[:, :, back][..., back]

    def program_order(self, batch: int, heads: int) -> Tensor:
        """Say in which order a kernel should start the rows of blocks, on the layout's device.

        Rows that are twice as long as the mean, four times and so on start first, so that none of
        them is left running alone at the end: text that sees all keys beside a narrow band. All
        others keep their order, in which neighbours share keys in the cache. The order is kept.

        Returns:
            int32 ``(batch * heads * query blocks,)``: ``(item * heads + head) * query blocks +
            block``.
        """
        if (batch, heads) not in self._orders:
            length = self.full_count + PARTIAL_WORK * self.partial_count
            length = length.expand(batch, heads, -1).flatten()
            excess = (length / length.mean()).log2().floor().clamp(min=0)
            order = excess.argsort(descending=True, stable=True)
            self._orders[batch, heads] = order.to(torch.int32)
        return self._orders[batch, heads]

    def to(self, device: torch.device | str) -> BlockLayout:
        """Return this layout on another device, or itself if it is there; copies are kept."""
        device = torch.empty(0, device=device).device  # "cuda" has no number, "cuda:0" has
        if self.full_count.device == device:
            return self
        if device not in self._copies:
            self._copies[device] = replace(self, **parts_on(self, device), trusted=True)
        return self._copies[device]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockLayout) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        rule = "whole blocks" if self.rule is None else type(self.rule).__name__
        batch, heads = self.full_count.shape[:2]
        return (
            f"BlockLayout({self.q_tokens} x {self.k_tokens} tokens in blocks of {self.q_block} x "
            f"{self.k_block}, {batch} x {heads} lists, {rule}, {self.density:.1%} of the blocks)"
        )

    @cached_property
    def _copies(self) -> dict[torch.device, BlockLayout]:
        return {}

    @cached_property
    def _orders(self) -> dict[tuple[int, int], Tensor]:
        return {}

    @cached_property
    def _digest(self) -> bytes:
        return fingerprint(self)
