"""Techniques that bring a cheaper kernel for attention among image tokens: what they share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.ops.merging import Ranking, cell_destinations, rank_sources
from attnctl.settings import check_number, check_whole
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

DESTINATIONS = ("random", "corner")


@dataclass(frozen=True)
class ImageAttention(Technique):
    """Base of techniques that own the kernel where image tokens attend to each other.

    With single heads or a strength below 1 (``where="...,heads="``, a ramp), dense attention is
    computed as well and the two are mixed, which saves nothing.

    Attributes:
        levels: How many resolutions it acts on, from the finest that ``where`` selects.
    """

    can_repeat: ClassVar[bool] = True

    where: Where = field(default=Where("self|joint"), kw_only=True)
    levels: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self.name, "levels", self.levels, at_least=1)

    @property
    @abstractmethod
    def smallest_side(self) -> int:
        """Fewest rows and columns of image tokens that it can work on."""

    @abstractmethod
    def attend_image(self, call: AttentionCall, layout: Layout) -> Tensor:
        """Attention of all heads: ``(R * fold, H, Q, D)``."""

    def needs(self) -> Needs:
        """It must know how image tokens lie."""
        return Needs(layout=True)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        """Keep the finest resolutions; refuse sites where it cannot act."""
        for site in sites:
            if site.kind in ("cross", "temporal"):
                raise UnsupportedModelError(
                    f"{self.name} acts where image tokens attend to each other; {site.path} is "
                    f"{site.kind} attention. Select other sites, such as where='self|joint'"
                )
        finest = {site.denoiser: site.level for site in sites}
        for site in sites:
            finest[site.denoiser] = min(site.level, finest[site.denoiser])
        kept = tuple(s for s in sites if s.level < finest[s.denoiser] + self.levels)
        for site in kept:
            layout = layouts.get(site)
            if layout is None:
                raise UnsupportedModelError(
                    f"{self.name}: how the tokens of {site.path} lie is unknown"
                )
            height, width = layout.grid[1:]
            if min(height, width) < self.smallest_side:
                raise UnsupportedModelError(
                    f"{self.name}: the image tokens of {site.path} lie {height}x{width} in this "
                    f"run, it needs {self.smallest_side} a side or more; select finer sites with "
                    "where= or levels=, or make larger pictures"
                )
        return kept

    def attend(self, call: AttentionCall) -> Tensor:
        """Own the kernel; see :meth:`attend_image`."""
        layout = call.layout
        if layout is None:
            raise UnsupportedModelError(
                f"{self.name}: how the tokens of {call.site.path} lie is unknown"
            )
        known, given = layout.image.stop, call.query.shape[2]
        if known > given or (layout.text is None and known != given):
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} attends with {given} tokens where the layout of "
                f"{layout.grid[1]}x{layout.grid[2]} has {known}; leave it out with where="
            )
        out = self.attend_image(call, layout)
        if call.heads is None and call.strength == 1.0:
            return out
        weights = torch.zeros(out.shape[1], dtype=out.dtype, device=out.device)
        weights[slice(None) if call.heads is None else list(call.heads)] = call.strength
        dense = call.attend(call.query, call.key, call.value, call.mask)
        return torch.lerp(dense, out, weights.view(1, -1, 1, 1))

    def refuse_positions(self, call: AttentionCall, what: str, remedy: str) -> None:
        """Refuse sites that rotate or normalise queries and keys: means do not commute with that.

        Raises:
            UnsupportedModelError: naming the site and a remedy.
        """
        module = call.processor.attn
        rotary = [
            n for n, v in call.processor.arguments().items() if "rotary" in n and v is not None
        ]
        norms = [n for n in ("norm_q", "norm_k") if getattr(module, n, None) is not None]
        if rotary or norms:
            how = "rotates" if rotary else "normalises"
            raise UnsupportedModelError(
                f"{self.name} {what}, and {call.site.path} {how} queries and keys before it "
                f"attends ({', '.join(rotary or norms)}); {remedy}"
            )


@dataclass(frozen=True)
class MatchedAttention(ImageAttention):
    """Base of techniques that merge image tokens which resemble each other.

    Attributes:
        ratio: Share of the image tokens that is merged away, in [0, 1]; 0 merges none, and at most
            ``1 - 1 / cell**2`` of them are, those that are no destination.
        cell: Side in tokens of the squares of which one token each is a destination.
        destinations: Token of each square: ``random`` (drawn at each step and layer, alike for all
            rows) or ``corner``, the top left one.
        seed: Of that choice; the pipeline's generator is not touched.
    """

    ratio: float = 0.5
    cell: int = 2
    destinations: str = field(default="random", kw_only=True)
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "ratio", self.ratio, at_least=0, at_most=1)
        check_whole(self.name, "cell", self.cell, at_least=2)
        check_whole(self.name, "seed", self.seed, at_least=0)
        if self.destinations not in DESTINATIONS:
            raise SettingError(
                f"{self.name}: destinations={self.destinations!r}; "
                f"{nearest(str(self.destinations), DESTINATIONS)}"
            )

    @property
    def smallest_side(self) -> int:
        """One whole cell."""
        return self.cell

    def rank(self, call: AttentionCall, layout: Layout) -> Ranking:
        """Match the image tokens of a site by the input of its attention module.

        Raises:
            UnsupportedModelError: the site has a mask, or rotates or normalises its queries.
        """
        self.refuse_positions(
            call, "merges tokens", "use token-downsampling there, which selects keys"
        )
        if call.mask is not None:
            raise UnsupportedModelError(
                f"{self.name} merges keys, so the attention mask of {call.site.path} has no "
                "meaning for them; move the technique that adds it, or this one, to other sites "
                "with where="
            )
        hidden, image = call.hidden, layout.image
        if hidden is None or hidden.dim() != 3:
            raise UnsupportedModelError(
                f"{self.name}: the attention of {call.site.path} is not given (rows, tokens, "
                "channels); leave it out with where="
            )
        if hidden.shape[1] != image.stop - image.start:
            hidden = hidden[:, image]
        is_drawn = self.destinations == "random"
        key = (self.seed, call.step.index, call.site.path) if is_drawn else None
        frames = (image.stop - image.start) // (layout.grid[1] * layout.grid[2])
        chosen = cell_destinations(frames, layout.grid[1], layout.grid[2], self.cell, key)
        return rank_sources(hidden, chosen)
