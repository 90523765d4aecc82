"""RegionWords: words of a prompt confined to a region of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.chosen_heads import on_heads
from attnctl.editing.portraits import Region, plain_regions, read_regions
from attnctl.editing.region_masks import resized_mask
from attnctl.editing.unet_maps import grid_of
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.named_words import find_tokens, spread
from attnctl.ops.bounded_attention import box_masks
from attnctl.ops.token_bias import bias_of, memberships
from attnctl.registry import register
from attnctl.sites import Site, check_kinds
from attnctl.subjects import check_subjects, lists_of
from attnctl.technique import Technique
from attnctl.where import Where


@dataclass(slots=True)
class _State:
    """Token positions of words by item and region, and the regions by the grid of layers."""

    positions: list[list[tuple[int, ...]]]
    regions: tuple[Region, ...]
    cells: dict[tuple[int, int], list[Tensor]] = field(
        default_factory=dict[tuple[int, int], list[Tensor]]
    )

    def outside(self, grid: tuple[int, int]) -> list[Tensor]:
        """Tokens outside of each region, bool ``(n,)``."""
        if grid not in self.cells:
            self.cells[grid] = [~_on_grid(region, grid) for region in self.regions]
        return self.cells[grid]


def _on_grid(region: Region, grid: tuple[int, int]) -> Tensor:
    if isinstance(region, Tensor):
        return resized_mask(region, grid).flatten()
    return box_masks([region], *grid).flatten()


@register("region-words")
@dataclass(frozen=True)
class RegionWords(Technique):
    """Let image tokens outside a region see nothing of some words of the prompt.

    PrimeComposer's region-constrained cross-attention: the object's words act where the object is,
    and do not leak into the background. Tokens inside the region attend as before, and so does the
    unconditional branch; outside, the other words share what these had. A strength below 1 in
    ``steps`` multiplies the odds of these words outside the region by one minus it.

    Attributes:
        words: Words or phrases of the prompt, or token positions (BOS is 0), in one list or in a
            list for each prompt; a word counts at its first occurrence, with all its tokens.
            Without any it does nothing.
        region: Where they are seen: a box ``(x0, y0, x1, y1)`` in parts of the picture from its
            upper left corner, or a mask as a file, a picture or an array ``(height, width)``,
            white inside. None: it does nothing.
        regions: Instead of one region, several: each word is seen in its own, in the order of
            ``words``, where a phrase counts as one.
        where: Cross-attention.
    """

    reference: ClassVar[str] = "Wang et al., ACM MM 2024, arXiv 2403.05053 (PrimeComposer)"
    families: ClassVar[str] = "UNet, PixArt: pictures with attention to text alone"

    words: Sequence[str | int] | Sequence[Sequence[str | int]] = ()
    region: Any = field(default=None, compare=False)
    regions: Any = field(default=(), compare=False)
    where: Where = field(default=Where("cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "words", check_subjects(self.name, self.words, "words"))
        if self.region is not None:
            read_regions(self.name, "region", [self.region])
        count = len(read_regions(self.name, "regions", self.regions))
        if count and self.region is not None:
            raise SettingError(f"{self.name}: give region= for all words or regions=, not both")
        for words in lists_of(self.words):
            if count and words and len(words) != count:
                raise SettingError(
                    f"{self.name}: words={list(words)} and {count} regions; give each word, or "
                    "phrase, a region of its own, or one region= for all of them"
                )

    def settings(self) -> dict[str, Any]:
        """Plain values; of a mask its file or size."""
        region = None if self.region is None else plain_regions([self.region])[0]
        return super().settings() | {"region": region, "regions": plain_regions(self.regions)}

    def strength_at(self, index: int, total: int | None) -> float:
        has_place = self.region is not None or len(self.regions) > 0
        is_on = any(lists_of(self.words)) and has_place
        return self.steps.strength(index, total) if is_on else 0.0

    def needs(self) -> Needs:
        words = [word for one in lists_of(self.words) for word in one]
        return Needs(layout=True, prompts=any(isinstance(word, str) for word in words))

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where image tokens attend to text alone"
        check_kinds(self.name, sites, ("cross",), does, "cross")
        if any(x is None or x.grid[0] > 1 or x.text is None for x in layouts.values()):
            raise UnsupportedModelError(
                f"{self.name} acts on single pictures whose image and text tokens are known; it "
                f"supports {self.families}"
            )
        return sites

    def begin(self, run: RunStart) -> _State:
        texts = [x.text for x in run.layouts.values() if x is not None and x.text is not None]
        length = min((text.stop - text.start for text in texts), default=None)
        lists = spread(self.name, "words", lists_of(self.words), run.items)
        found: list[list[tuple[int, ...]]] = []
        for item, words in enumerate(lists):
            prompt = None if run.prompts is None else run.prompts[item][0]
            found.append(find_tokens(self.name, "words", words, prompt, length))
        if self.region is None:
            return _State(found, read_regions(self.name, "regions", self.regions))
        together = [[tuple({p for own in tokens for p in own})] for tokens in found]
        return _State(together, read_regions(self.name, "region", [self.region]))

    def edit_qkv(self, call: AttentionCall) -> None:
        at = call.pick(branch="cond")
        if not len(at) or call.layout is None or call.layout.text is None:
            return
        state: _State = call.state
        start = call.layout.text.start
        items = [call.rows[row // call.fold].item for row in at.tolist()]
        count, tokens = call.key.shape[2], call.query.shape[2]
        forbidden = torch.zeros(len(at), 1, tokens, count, dtype=torch.bool, device=at.device)
        for number, outside in enumerate(state.outside(grid_of(call))):
            named = [state.positions[item][number : number + 1] for item in items]
            columns = [[start + p for positions in own for p in positions] for own in named]
            words = memberships(columns, count).to(at.device)
            forbidden |= outside.to(at.device)[:, None] & words[:, None, None]
        bias = bias_of(forbidden, call.strength, call.query.dtype)
        call.add_bias(on_heads(bias, 0.0, call.heads, call.query.shape[1]), at)
