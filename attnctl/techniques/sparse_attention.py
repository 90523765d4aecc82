"""Sparse attention: each image token sees a part of the others, under a mask of your choice."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.engine.cache import SiteCache
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError, nearest
from attnctl.kernels import BlockLayout, attention, block_sparse_attention
from attnctl.kernels.block_sparse import choose_for_layout
from attnctl.registry import register
from attnctl.schedule import Schedule
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.sparse_masks import (
    PREDICTED,
    build_layout,
    column_mask,
    image_grid,
    list_masks,
    predicted_layout,
)
from attnctl.technique import Technique
from attnctl.where import Where


@dataclass(slots=True)
class SparseState:
    """What a sparse technique knows in a run.

    Attributes:
        warn: Warns in the report.
        note: Tells something in the report.
        dense: Sites (denoiser, path) that came out too far from dense attention.
    """

    warn: Callable[[str], None]
    note: Callable[[str], None]
    dense: set[tuple[str, str]]


@register("sparse-attention")
@dataclass(frozen=True)
class SparseAttention(Technique):
    """Let each image token see a part of the others only, which costs a part of the time.

    Text and other tokens beside the image see all and are seen by all. Outside ``steps``, in
    gradient passes and at sites that ``where`` leaves out, attention is dense.

    Attributes:
        mask: ``raster-band``: tokens near in raster order; ``frame-band``: the same within every
            frame; ``neighbourhood``: a window around the token; ``tiles``: whole tiles around its
            tile; ``strided``: near tokens and every n-th; ``radial``: bands between frames that
            narrow with their distance, whatever ``sparsity``; ``predicted``: for each call, row
            and head the blocks whose means match best.
        sparsity: Share of the image tokens that a token does not see, in [0, 1); 0 is off. Windows
            and tiles come in whole numbers; the report tells the share that was met.
        block: Tokens in a block of the kernel, a multiple of 8. Smaller blocks follow the mask
            closer, larger ones suit a GPU.
        least_tokens: Sites with fewer image tokens stay dense.
        kernel: Block-sparse kernel, or ``auto``.
        max_error: If set, some query rows are compared with dense attention at every call; a site
            whose relative error exceeds this is dense from then on, with a warning.
        checked_rows: How many query rows ``max_error`` looks at.
    """

    reference: ClassVar[str] = "masks as in arXiv 2505.22918, 2504.16922, 2502.04507, 2502.18137"
    gives_lse: ClassVar[bool] = True
    has_dense_gradients: ClassVar[bool] = True
    families: ClassVar[str] = "every family whose token layout is known"

    mask: str = "frame-band"
    sparsity: float = 0.9
    steps: Schedule = field(default=Schedule.parse("20%-"), kw_only=True)
    where: Where = field(default=Where("self|joint"), kw_only=True)
    block: int = 64
    least_tokens: int = 1024
    kernel: str = "auto"
    max_error: float | None = None
    checked_rows: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "sparsity", self.sparsity, at_least=0, at_most=0.9999)
        check_number(self.name, "least_tokens", self.least_tokens, at_least=0)
        check_number(self.name, "checked_rows", self.checked_rows, at_least=1)
        if self.max_error is not None:
            check_number(self.name, "max_error", self.max_error, at_least=0)
        if self.mask not in list_masks():
            hint = nearest(str(self.mask), list_masks())
            raise SettingError(f"{self.name}: mask={self.mask!r}; {hint}")
        if self.block < 8 or self.block % 8:
            raise SettingError(f"{self.name}: block={self.block!r} must be a multiple of 8, from 8")
        if self.steps.ramp is not None:
            raise SettingError(
                f"{self.name}: steps={self.steps!s} has a ramp, but a mask is there or not; "
                "leave the ramp out"
            )

    def needs(self) -> Needs:
        return Needs(layout=True)

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self.sparsity else 0.0

    def begin(self, run: RunStart) -> SparseState:
        return SparseState(run.warn, run.note, set())

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        kept: list[Site] = []
        counts: set[int] = set()
        for site in sites:
            layout = layouts[site]
            if site.kind not in ("self", "joint") or layout is None:
                raise UnsupportedModelError(
                    f"{self.name} chooses among the image tokens that a token sees; {site.path} is "
                    f"{site.kind} attention{'' if layout else ' without a known token layout'}. "
                    "Select other sites, such as where='self' or where='joint'"
                )
            image_grid(layout, site.path)
            counts.add(layout.image.stop - layout.image.start)
            if layout.image.stop - layout.image.start >= self.least_tokens:
                kept.append(site)
        if not kept:
            raise NoSiteError(
                f"{self.name}: no selected site has {self.least_tokens} image tokens in this run "
                f"(they have {', '.join(map(str, sorted(counts)))}); make larger pictures, or "
                "lower least_tokens"
            )
        return tuple(kept)

    def attend(self, call: AttentionCall) -> Tensor:
        is_refused = call.state is not None and _key(call.site) in call.state.dense
        if call.pass_.kind == "gradient" or is_refused or not self._fits(call):
            return attend_densely(call)
        assert call.cache is not None  # it needs a layout, so there is a run
        with call.cache.explained_memory(call.owner):
            if call.heads is None:
                return self.attend_sparsely(call, call.cache)
            return self._attend_on_heads(call, call.cache, list(call.heads))

    def attend_sparsely(self, call: AttentionCall, cache: SiteCache) -> Tensor:
        """Attention under the mask, ``(R * fold, H, Q, D)``; leaves its log-sum-exp in the call."""
        layout = self.layout_of(call, cache)
        call.kernel = self.kernel_for(call, layout)
        out, call.lse = block_sparse_attention(
            call.query, call.key, call.value, layout, scale=call.scale, kernel=self.kernel
        )
        call.allowed = lambda tokens: column_mask(layout, tokens.to(layout.full_count.device))
        return self.checked(call, out)

    def layout_of(self, call: AttentionCall, cache: SiteCache) -> BlockLayout:
        """The mask of this call in blocks; static ones are made once a run and grid."""
        assert call.layout is not None  # looked at in `narrow`
        grid, first = image_grid(call.layout, call.site.path), call.layout.image.start
        share, tokens = 1 - self.sparsity, call.query.shape[2]
        if self.mask == PREDICTED:
            return predicted_layout(
                call.query, call.key, grid, first, share, self.block, call.scale
            )

        def make() -> BlockLayout:
            layout = build_layout(self.mask, grid, first, tokens, share, self.block)
            call.state.note(
                f"{call.owner}: {self.mask} keeps {layout.kept_share:.1%} of the pairs of {tokens} "
                f"tokens ({' x '.join(map(str, grid))} in the image), in {layout.density:.1%} of "
                f"the blocks of {self.block}"
            )
            return layout

        key = ("layout", self.mask, share, self.block, grid, first, tokens)
        return cache.made(key, make).to(call.query.device)

    def kernel_for(self, call: AttentionCall, layout: BlockLayout) -> str:
        """Name of the kernel that serves a layout."""
        return choose_for_layout(call.query, call.key, call.value, layout, self.kernel).name

    def checked(self, call: AttentionCall, out: Tensor) -> Tensor:
        """The result, or the dense one if some of its rows are too far from it."""
        if self.max_error is None:
            return out
        tokens = call.query.shape[2]
        rows = torch.linspace(0, tokens - 1, min(self.checked_rows, tokens)).long().to(out.device)
        exact, _ = attention(call.query[:, :, rows], call.key, call.value, None, call.scale)
        difference = (out[:, :, rows].float() - exact.float()).flatten(1).norm(dim=1)
        error = float((difference / exact.float().flatten(1).norm(dim=1).clamp_min(1e-12)).max())
        if error <= self.max_error:
            return out
        call.state.dense.add(_key(call.site))
        call.state.warn(
            f"{call.owner}: {call.site.path} came out {error:.0%} from dense attention at step "
            f"{call.step.index}, more than max_error={self.max_error:g}; it is dense from there on"
        )
        return attend_densely(call)

    def _attend_on_heads(self, call: AttentionCall, cache: SiteCache, chosen: list[int]) -> Tensor:
        """Sparse attention in some heads, dense attention in the others."""
        heads = call.query.shape[1]
        others = [head for head in range(heads) if head not in chosen]
        repeats = heads // call.key.shape[1]
        part = replace(call, heads=None, query=call.query[:, chosen])
        part.key, part.value = (
            t[:, [h // repeats for h in chosen]] for t in (call.key, call.value)
        )
        sparse = self.attend_sparsely(part, cache)
        key, value = (t[:, [h // repeats for h in others]] for t in (call.key, call.value))
        dense, dense_lse = attention(
            call.query[:, others], key, value, None, call.scale, need_lse=call.wants_lse
        )
        back = torch.tensor(chosen + others, device=sparse.device).argsort()
        call.kernel = part.kernel
        if call.wants_lse:
            call.lse, call.allowed = _joined_lse(part, dense_lse, back)
        return torch.cat((sparse, dense), dim=1)[:, back]

    def _fits(self, call: AttentionCall) -> bool:
        """Whether the mask can serve a call; the report says why not."""
        reason = None
        if call.mask is not None:
            reason = "the model has a mask of its own there"
        elif call.query.shape[2] != call.key.shape[2]:
            reason = f"{call.query.shape[2]} queries and {call.key.shape[2]} keys differ in number"
        if reason is not None:
            call.state.warn(f"{call.owner}: {call.site.path} is dense, as {reason}")
        return reason is None


def attend_densely(call: AttentionCall) -> Tensor:
    """Dense attention of the whole call, its own mask included."""
    call.kernel, call.lse, call.allowed = "sdpa", None, None
    return call.attend(call.query, call.key, call.value, call.mask)


def _joined_lse(
    part: AttentionCall, dense_lse: Tensor | None, back: Tensor
) -> tuple[Tensor | None, Callable[[Tensor], Tensor]]:
    """Log-sum-exp of all heads, and which keys they see."""
    lse = part.lse
    if lse is None or dense_lse is None:  # the sparse heads were refused by the check
        return None, lambda tokens: torch.ones(1, 1, 1, 1, dtype=torch.bool)

    def allowed(tokens: Tensor) -> Tensor:
        heads = lse.shape[1]
        seen = torch.ones(1, len(back), lse.shape[2], len(tokens), dtype=torch.bool)
        if part.allowed is not None:
            mask = part.allowed(tokens)
            seen = seen.expand(len(mask), -1, -1, -1).to(mask.device).clone()
            seen[:, :heads] = mask
        return seen[:, back.to(seen.device)]

    return torch.cat((lse, dense_lse), dim=1)[:, back], allowed


def _key(site: Site) -> tuple[str, str]:
    return (site.denoiser, site.path)
