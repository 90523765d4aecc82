"""What a technique's phases receive.

The small types that they are made of live in :mod:`attnctl.engine.roles` and
:mod:`attnctl.engine.needs`, and can be imported from here too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.engine.needs import AddedRow, Move, Needs, OtherPrompt, Read, ReadKind
from attnctl.engine.predictions import PredictionCall
from attnctl.engine.roles import Layout, Pass, PassKind, Row, Rows, Step
from attnctl.errors import KernelError
from attnctl.kernels import (
    attention,
    attention_scores,
    probability_columns,
    probability_masses,
)
from attnctl.sites import Site

if TYPE_CHECKING:
    from attnctl.editing.features import Fingerprint
    from attnctl.engine.cache import SiteCache
    from attnctl.tokens import PromptTokens

__all__ = [
    "AddedRow",
    "AttentionCall",
    "InputsCall",
    "LatentsCall",
    "Layout",
    "Move",
    "Needs",
    "OtherPrompt",
    "Pass",
    "PassKind",
    "PredictionCall",
    "Read",
    "ReadKind",
    "Row",
    "Rows",
    "RunStart",
    "Step",
]


@dataclass(slots=True)
class AttentionCall:
    """One scaled-dot-product attention of one site.

    ``query``, ``key`` and ``value`` are ``(R * fold, H, tokens, D)``, after projection, norms and
    rotary embedding; assign to edit them, never change them in place. The batch axis is rows times
    fold, rows slowest. ``mask`` is the model's own, boolean (True attends) or additive.
    ``strength``, ``state``, ``heads`` and ``owner`` are those of the technique whose method runs.

    A kernel owner finds in ``cache`` what it may keep between steps, and in ``wants_lse`` whether
    anyone reads columns here. It leaves the log-sum-exp ``(R * fold, H, Q)`` of the map it used
    in ``lse``, a function of key positions in ``allowed`` that tells which queries see them (bool
    ``(R * fold | 1, H | 1, Q, n)``; ``None``: all do), and in ``kernel`` what computed the result.
    """

    site: Site
    layout: Layout | None
    step: Step
    pass_: Pass
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    hidden: Tensor | None = None
    strength: float = 1.0
    state: Any = None
    heads: tuple[int, ...] | None = None
    owner: str = ""
    processor: Any = None
    keys_of_other: "Callable[[Any], tuple[Tensor, Tensor, Tensor | None]] | None" = None
    cache: "SiteCache | None" = None
    wants_lse: bool = False
    lse: Tensor | None = None
    allowed: Callable[[Tensor], Tensor] | None = None
    kernel: str = ""

    @property
    def rows(self) -> Rows:
        """Roles of the rows of this forward."""
        return self.pass_.rows

    @property
    def fold(self) -> int:
        """Batch entries per row (frames or positions folded into the batch axis)."""
        return max(1, self.query.shape[0] // len(self.rows))

    def pick(
        self, branch: str | None = None, item: int | None = None, kind: str | None = None
    ) -> Tensor:
        """Batch indices of the rows that fit; ``kind=None`` means all kinds, shadows included.

        Of added rows, a technique picks its own.
        """
        fold = self.fold
        chosen = [
            r * fold + f
            for r, row in enumerate(self.rows)
            if (branch is None or row.branch == branch)
            and (item is None or row.item == item)
            and row.fits(self.owner, kind)
            for f in range(fold)
        ]
        return torch.tensor(chosen, dtype=torch.long, device=self.query.device)

    def add_bias(self, bias: Tensor, at: Tensor | None = None) -> None:
        """Add to the logits of the batch entries ``at`` (all of them by default).

        Args:
            bias: Broadcastable to ``(at, H, Q, K)``; forbid a key with half the dtype's minimum.
            at: Batch indices, from :meth:`pick`.
        """
        whole = self.additive_mask()
        shape = (self.query.shape[0], self.query.shape[1], self.query.shape[2], self.key.shape[2])
        if at is None:
            self.mask = _bounded(bias.to(self.query) if whole is None else whole + bias.to(whole))
            return
        heads = max(bias.shape[1] if bias.dim() == 4 else 1, 1 if whole is None else whole.shape[1])
        full = torch.zeros(
            (shape[0], heads, *shape[2:]), dtype=self.query.dtype, device=bias.device
        )
        if whole is not None:
            full = full + whole
        added = torch.zeros_like(full).index_copy(
            0, at, bias.to(full).expand(len(at), heads, *shape[2:])
        )
        self.mask = _bounded(full + added)

    def additive_mask(self) -> Tensor | None:
        """The mask as an additive bias of four axes, or ``None``."""
        mask = self.mask
        if mask is None:
            return None
        if mask.dtype == torch.bool:
            low = torch.finfo(self.query.dtype).min / 2
            mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill(~mask, low)
        while mask.dim() < 4:
            mask = mask.unsqueeze(0 if mask.dim() == 2 else 1)
        return mask

    def columns(
        self,
        tokens: Sequence[int] | slice,
        at: Tensor | None = None,
        queries: slice = slice(None),
    ) -> Tensor:
        """Exact probabilities of key positions ``tokens``: ``(at, H, queries, n)``, fp32.

        Never computes the whole map of a long sequence; differentiable in the gradient pass.
        """
        if self.lse is not None:
            return self._columns_of_owner(tokens, at, queries)
        query, key, mask = self._taken(at, queries)
        chosen = tokens if isinstance(tokens, slice) else torch.as_tensor(tokens, device=key.device)
        return probability_columns(
            query,
            key,
            chosen,
            mask=mask,
            scale=self.scale,
            differentiable=torch.is_grad_enabled() and query.requires_grad,
        )

    def masses(self, groups: Tensor, at: Tensor | None = None) -> Tensor:
        """Probability mass of key groups ``(K, g)``: ``(at, H, Q, g)``, fp32.

        Raises:
            KernelError: a kernel owner used another map here.
        """
        if self.lse is not None:
            raise KernelError(
                f"the kernel that serves {self.site.path} shows columns of its map, not masses of "
                "key groups; read columns, or give the techniques different sites"
            )
        query, key, mask = self._taken(at)
        return probability_masses(
            query,
            key,
            groups,
            mask=mask,
            scale=self.scale,
            differentiable=torch.is_grad_enabled() and query.requires_grad,
        )

    def _columns_of_owner(
        self, tokens: Sequence[int] | slice, at: Tensor | None, queries: slice
    ) -> Tensor:
        """Columns of the map that a kernel owner used, from its log-sum-exp."""
        assert self.lse is not None  # looked at before
        key = self.key
        positions = torch.arange(key.shape[2], device=key.device)
        positions = positions[tokens if isinstance(tokens, slice) else torch.as_tensor(tokens)]
        rows = slice(None) if at is None else at
        scores = attention_scores(
            self.query[rows][:, :, queries], key[rows][:, :, positions], self.scale
        )
        columns = (scores - self.lse[rows][:, :, queries, None]).exp()
        if self.allowed is None:
            return columns
        mask = self.allowed(positions).to(columns.device)[:, :, queries]
        return columns * (mask[rows] if len(mask) > 1 else mask)

    def other_keys(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Key, value ``(1, H, tokens, D)`` and mask of ``Needs.other_prompt``, at a cross site."""
        if self.keys_of_other is None:
            raise KeyError(f"there is no other prompt at {self.site.path}")
        return self.keys_of_other(self.processor)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Dense attention with any capable kernel, outside the chain: ``(B, H, Q, D)``."""
        return attention(query, key, value, mask, self.scale)[0]

    def _taken(
        self, at: Tensor | None, queries: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        query, key, mask = self.query, self.key, self.mask
        if mask is not None and mask.shape[-2] == query.shape[2]:
            mask = mask[..., queries, :]
        if at is None:
            return query[:, :, queries], key, mask
        return query[at][:, :, queries], key[at], self._rows_of(mask, at)

    def mask_of(self, at: Tensor) -> Tensor | None:
        """The mask of the batch entries ``at``."""
        return self._rows_of(self.mask, at)

    def _rows_of(self, mask: Tensor | None, at: Tensor) -> Tensor | None:
        has_rows = mask is not None and mask.dim() > 2 and mask.shape[0] == self.query.shape[0]
        return mask[at] if mask is not None and has_rows else mask


@dataclass(slots=True)
class InputsCall:
    """The denoiser's arguments before a forward; replace entries of ``arguments`` to edit them.

    ``encode`` gives the denoiser's text arguments for another prompt, ``(1, ...)`` each.
    """

    step: Step
    rows: Rows
    arguments: dict[str, Any]
    latents: Tensor
    encode: Callable[[OtherPrompt], Mapping[str, Tensor]]
    strength: float = 1.0
    state: Any = None


@dataclass(slots=True)
class LatentsCall:
    """The latents after ``scheduler.step``."""

    step: Step
    latents: Tensor
    strength: float = 1.0
    state: Any = None


@dataclass(slots=True)
class RunStart:
    """What a technique learns at the first denoiser call of a run.

    Attributes:
        items: Pictures (or clips) of the run.
        total: Solver steps; ``None`` for a bare denoiser.
        sites: The sites where the technique acts.
        layouts: Layout of each of them by path; empty if nothing attached needs layouts.
        prompts: For each item, its prompt as each text encoder sees it; ``None`` if the pipeline
            was given embeddings.
        warn: Note something in the report, once, as a warning.
        note: Note something in the report, once.
        fingerprint: Describes the run, for features that are kept from one run to another.
    """

    items: int
    total: int | None
    sites: tuple[Site, ...]
    layouts: Mapping[str, Layout | None]
    prompts: "tuple[tuple[PromptTokens, ...], ...] | None"
    warn: Callable[[str], None]
    note: Callable[[str], None]
    fingerprint: "Callable[[], Fingerprint]"


def _bounded(bias: Tensor) -> Tensor:
    """Keep a bias finite: several that forbid a key must not add up to minus infinity."""
    return bias.clamp_min(torch.finfo(bias.dtype).min / 2)
