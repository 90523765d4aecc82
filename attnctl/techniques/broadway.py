"""BroadWay (ByTheWay): steadier and livelier clips, by two edits of temporal attention maps."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, Pass, RunStart
from attnctl.chosen_heads import on_heads
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.broadway import (
    Grid,
    amplify,
    energy,
    first_high_bin,
    high_frequencies,
    onto_grid,
    restoring_factor,
    with_heads,
)
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where

_IN_UP_BLOCK = re.compile(r"up_blocks\.(\d+)\.(.+)")


@dataclass(slots=True)
class _Seen:
    """What earlier calls leave for later ones: maps within a forward, factors within a step."""

    first: int
    pass_: Pass | None = None
    iteration: int = -1
    maps: dict[str, tuple[Tensor, Grid]] = field(default_factory=dict[str, tuple[Tensor, Grid]])
    factors: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])

    def drop_older(self, call: AttentionCall) -> None:
        """Forget what belongs to another forward, or to another step."""
        if call.pass_ is not self.pass_:
            self.pass_ = call.pass_
            self.maps.clear()
        if call.step.iteration != self.iteration:
            self.iteration = call.step.iteration
            self.factors.clear()


@register("broadway")
@dataclass(frozen=True)
class BroadWay(Technique):
    """Steady the structure of clips and raise their motion (also known as ByTheWay).

    In the up blocks of a U-Net behind the first, temporal attention maps are pulled towards those
    of the same layer of the coarsest of these blocks, ``A + alpha * (A_coarse - A)``. Then their
    fast changes from frame to frame are multiplied by ``max(beta, beta_c)``, where ``beta_c`` gives
    the map the energy back that pulling took. In the coarsest block itself, pulling does nothing.

    The factor is one number for a clip and layer, measured on the conditional row and used for
    all rows of the clip. Where the branches are called one by one, the unconditional call takes
    the factor over if it comes second in the step; if it comes first, it is measured there.

    Attributes:
        tau: Which frequencies are high: those up to ``tau`` bins from the fastest, from 0 to
            ``F // 2 - 1`` for F frames. None is the largest of these, all but the constant part:
            7 for 16 frames, as the authors have it.
        alpha: Share of the coarse map, in [0, 1]; 0 leaves maps as they are. The authors advise 0.6
            for AnimateDiff, 0.1 for VideoCrafter2.
        beta: Least factor on the high frequencies, from 0; up to 1 restores their energy alone.
            The authors advise 1.5 for AnimateDiff, 10 for VideoCrafter2. Large ones give maps with
            negative entries, which shift colours.
        steps: The default is the first fifth of the run, as the authors have it.
        where: Temporal sites; others than those in up blocks behind the first are left out. The
            coarsest block that it selects is the one that the others are pulled towards.
    """

    reference: ClassVar[str] = "Bu et al., CVPR 2025, arXiv 2410.06241"
    families: ClassVar[str] = "UNetMotion (AnimateDiff)"

    tau: int | None = None
    alpha: float = 0.6
    beta: float = 1.5
    steps: Schedule = field(default=until(0.2), kw_only=True)
    where: Where = field(default=Where("temporal"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_whole = isinstance(self.tau, int) and not isinstance(self.tau, bool)
        if self.tau is not None and not (is_whole and self.tau >= 0):
            raise SettingError(
                f"{self.name}: tau={self.tau!r} must be a whole number of frequencies from 0, or "
                "None for all but the constant part"
            )
        check_number(self.name, "alpha", self.alpha, at_least=0, at_most=1)
        check_number(self.name, "beta", self.beta, at_least=0)

    def needs(self) -> Needs:
        return Needs(layout=True, couples=True)

    def strength_at(self, index: int, total: int | None) -> float:
        if self.alpha == 0 and self.beta <= 1:
            return 0.0
        return self.steps.strength(index, total)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where frames attend to frames"
        check_kinds(self.name, sites, ("temporal",), does, "temporal")
        if not sites:
            return sites
        kept = tuple(site for site in sites if _place(site)[0] > 0)
        if not kept:
            raise NoSiteError(
                f"{self.name} acts in the up blocks of a U-Net behind the first, and none of the "
                f"{len(sites)} selected sites is there (the first of them is {sites[0].path}); "
                "select others, such as where='temporal'"
            )
        self._check_frames(kept, layouts)
        if self.alpha > 0:
            self._check_partners(kept)
        return kept

    def _check_frames(self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]) -> None:
        for layout in (layouts[site] for site in sites):
            try:
                first_high_bin(1 if layout is None else layout.grid[0], self.tau)
            except ValueError as error:
                raise SettingError(f"{self.name}: {error}") from None

    def _check_partners(self, sites: tuple[Site, ...]) -> None:
        first = _first_block(sites)
        coarse = {layer for block, layer in map(_place, sites) if block == first}
        for site in sites:
            layer = _place(site)[1]
            if layer not in coarse:
                raise NoSiteError(
                    f"{self.name} pulls the maps of {site.path} towards those of up_blocks."
                    f"{first}.{layer}, which is not among the selected sites; select whole blocks "
                    "with where=, or set alpha=0"
                )

    def begin(self, run: RunStart) -> _Seen:
        return _Seen(_first_block(run.sites))

    def edit_probs(self, call: AttentionCall, probs: Tensor) -> Tensor:
        layout = call.layout
        frames = None if layout is None else layout.grid[0]
        if layout is None or probs.shape[-2:] != (frames, frames):
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} attends from {probs.shape[-2]} tokens to "
                f"{probs.shape[-1]}, not from all {frames} frames of the clip to all of them (as "
                "with windows of frames); leave it out with where="
            )
        call.state.drop_older(call)
        maps = probs.unflatten(0, (len(call.rows), -1))
        pulled = self._pulled(call, maps, layout.size)
        high = high_frequencies(pulled, first_high_bin(layout.grid[0], self.tau))
        edited = amplify(pulled, high, self._factors(call, maps, pulled, high)).flatten(0, 1)
        result = torch.lerp(probs, edited, call.strength)
        return on_heads(result, probs, call.heads, probs.shape[1])

    def _pulled(self, call: AttentionCall, maps: Tensor, grid: Grid) -> Tensor:
        """Maps nearer to those of the same layer in the coarsest block."""
        state: _Seen = call.state
        block, layer = _place(call.site)
        if self.alpha == 0:
            return maps
        if block == state.first:
            state.maps[layer] = (maps, grid)
            return maps
        if layer not in state.maps:
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} was computed without up_blocks.{state.first}."
                f"{layer} before it in the same forward; let every block run, or set alpha=0"
            )
        coarse, from_grid = state.maps[layer]
        coarse = with_heads(coarse, maps.shape[2])
        return torch.lerp(maps, onto_grid(coarse, from_grid, grid), self.alpha)

    @torch.no_grad()
    def _factors(self, call: AttentionCall, maps: Tensor, pulled: Tensor, high: Tensor) -> Tensor:
        """Factor of each row, ``(R,)``: that of its clip's conditional row, where it is known."""
        low = energy(pulled - high)
        own = restoring_factor(energy(maps), low, energy(high)).clamp_min(self.beta)
        known: dict[tuple[str, int], Tensor] = call.state.factors
        for place, row in enumerate(call.rows):
            if (row.branch, row.kind) == ("cond", "main"):
                known[(call.site.path, row.item)] = own[place]
        return torch.stack(
            [known.get((call.site.path, row.item), own[k]) for k, row in enumerate(call.rows)]
        )


def _place(site: Site) -> tuple[int, str]:
    """Up block and layer in it; block 0, which is left alone, for all that is elsewhere."""
    found = _IN_UP_BLOCK.fullmatch(site.path)
    return (0, site.path) if found is None else (int(found[1]), found[2])


def _first_block(sites: tuple[Site, ...]) -> int:
    return min(_place(site)[0] for site in sites)
