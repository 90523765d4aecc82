"""Re-ttention: ultra-sparse attention, repaired with two statistics of a recent dense step."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall
from attnctl.engine.cache import Entry, SiteCache, on_device
from attnctl.errors import SettingError, nearest
from attnctl.kernels import (
    BlockLayout,
    attention,
    block_sparse_attention,
    sparse_refresh,
    sparse_reuse,
)
from attnctl.ops.statistics_reuse import reuse_statistics
from attnctl.registry import register
from attnctl.schedule import Schedule
from attnctl.settings import check_number
from attnctl.techniques.sparse_attention import SparseAttention

PUBLISHED: dict[str, dict[str, Any]] = {
    "pixart": {"steps": "25%-", "refresh": 5},  # 20 steps: dense 0-4, 5, 10, 15
    "hunyuan-dit": {"steps": "20%-", "refresh": 5},  # 50 steps: dense 0-9, 10, 15, ... 45
    "cogvideox": {"steps": "30%-", "refresh": 5},  # 50 steps: dense 0-14, 15, 20, ... 45
}


@register("re-ttention")
@dataclass(frozen=True)
class Rettention(SparseAttention):
    """Sparse attention that keeps the shape of the softmax and what lay outside its mask.

    The first of its steps, and every ``refresh``-th from there, is dense and measures for every
    query the share of the softmax inside the mask (rho) and what the other keys contributed (the
    residual). The steps between see the mask alone and give ``rho * sparse + residual``; rho grows
    by ``growth`` from one to the next. Dense steps before it and dense layers are those that
    ``steps`` and ``where`` leave out.

    Attributes:
        mask: As in ``sparse-attention``; a predicted mask is predicted at refreshes.
        sparsity: Share of the image tokens that a token does not see, in [0, 1); 0 is off.
        block: Tokens in a block of the kernel, a multiple of 8.
        least_tokens: Sites with fewer image tokens stay dense.
        kernel: Block-sparse kernel, or ``auto``.
        max_error: If set, some query rows are compared with dense attention at every sparse call;
            a site whose relative error exceeds this is dense from then on, with a warning.
        checked_rows: How many query rows ``max_error`` looks at.
        refresh: Steps from one dense step to the next, at least 1.
        growth: Added to rho after every sparse step; lambda in the paper.
        clamp: Keep rho at most 1; the paper's code does not.
        residual: Use the residual; without it the cache is a small part as large.
        offload: Keep the statistics in the memory of the CPU between steps.
    """

    reference: ClassVar[str] = "Chen et al., NeurIPS 2025, arXiv 2505.22918"

    sparsity: float = 0.96875
    steps: Schedule = field(default=Schedule.parse("25%-"), kw_only=True)
    refresh: int = 5
    growth: float = 0.04
    clamp: bool = False
    residual: bool = True
    offload: bool = False

    @classmethod
    def as_published(cls, model: str, **changes: Any) -> "Rettention":
        """The schedule of the paper's code for a model.

        Args:
            model: ``pixart`` (20 steps), ``hunyuan-dit`` or ``cogvideox`` (50 steps).
            changes: Other settings; they win.

        Raises:
            SettingError: there is no schedule for that model.
        """
        if model not in PUBLISHED:
            hint = nearest(model, PUBLISHED)
            raise SettingError(f"{cls.name}: no published schedule for {model!r}; {hint}")
        return cls(**{**PUBLISHED[model], **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "growth", self.growth)
        if isinstance(self.refresh, bool) or self.refresh != int(self.refresh) or self.refresh < 1:
            raise SettingError(
                f"{self.name}: refresh={self.refresh!r} must be a whole number of steps from 1"
            )

    @property
    def needs_loop(self) -> bool:
        return True  # statistics of one step serve the next: only a run tells which steps belong

    def attend_sparsely(self, call: AttentionCall, cache: SiteCache) -> Tensor:
        entry = cache.get(call)
        age = None if entry is None else call.step.index - entry.step
        if entry is None or age is None or age >= self.refresh:
            return self._refresh(call, cache)
        if age == 0:  # the second evaluation of a dense step
            return self._dense(call)
        return self.checked(call, self._reuse(call, entry))

    def _refresh(self, call: AttentionCall, cache: SiteCache) -> Tensor:
        layout = self.layout_of(call, cache)
        out = self._dense(call)
        assert call.lse is not None  # `_dense` leaves it
        call.kernel += f"+{self.kernel_for(call, layout)}"
        mass, residual = sparse_refresh(
            call.query, call.key, call.value, layout, out, call.lse,
            scale=call.scale, kernel=self.kernel,
        )  # fmt: skip
        tensors = {"mass": mass} | ({"residual": residual} if self.residual else {})
        cache.put(call, tensors, fact=layout, offload=self.offload)
        return out

    def _dense(self, call: AttentionCall) -> Tensor:
        """Dense attention with its log-sum-exp."""
        call.kernel = "sdpa-lse"
        out, call.lse = attention(call.query, call.key, call.value, None, call.scale, need_lse=True)
        call.allowed = None
        return out

    def _reuse(self, call: AttentionCall, entry: Entry) -> Tensor:
        layout: BlockLayout = entry.fact
        shift = self.growth * entry.steps_before(call.step.index)
        mass = on_device(entry.tensors["mass"], call.query)
        residual = entry.tensors.get("residual")
        residual = None if residual is None else on_device(residual, call.query)
        call.kernel = self.kernel_for(call, layout)
        given = (call.query, call.key, call.value, layout)
        if residual is not None and not call.wants_lse:
            return sparse_reuse(
                *given, mass, residual, shift=shift, clamp=self.clamp,
                scale=call.scale, kernel=self.kernel,
            )  # fmt: skip
        kept, kept_lse = block_sparse_attention(*given, scale=call.scale, kernel=self.kernel)
        # The log-sum-exp over all keys, as far as the kept ones and their former share tell.
        share = (mass + shift).clamp(torch.finfo(mass.dtype).tiny, 1.0)
        call.lse, call.allowed = kept_lse - share.log(), None
        rest = torch.zeros_like(kept) if residual is None else residual
        return reuse_statistics(kept, mass, rest, shift, clamp=self.clamp)
