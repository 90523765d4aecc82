"""RegionWords: words of a prompt confined to a region of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.chosen_heads import on_heads
from attnctl.editing.portraits import Region, plain_regions, read_regions
from attnctl.editing.region_masks import resized_mask
from attnctl.editing.unet_maps import grid_of
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.named_words import find_tokens, is_word
from attnctl.ops.bounded_attention import box_masks
from attnctl.ops.token_bias import bias_of, memberships
from attnctl.registry import register
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where


@dataclass(slots=True)
class _State:
    """Token positions of the words in each item's prompt, and the region by the grid of layers."""

    positions: list[tuple[int, ...]]
    region: Region
    cells: dict[tuple[int, int], Tensor] = field(default_factory=dict[tuple[int, int], Tensor])

    def outside(self, grid: tuple[int, int]) -> Tensor:
        """Tokens outside the region, bool ``(n,)``."""
        if grid not in self.cells:
            if isinstance(self.region, Tensor):
                found = resized_mask(self.region, grid)
            else:
                found = box_masks([self.region], *grid)
            self.cells[grid] = found.flatten()
        return ~self.cells[grid]


@register("region-words")
@dataclass(frozen=True)
class RegionWords(Technique):
    """Let image tokens outside a region see nothing of some words of the prompt.

    PrimeComposer's region-constrained cross-attention: the object's words act where the object is,
    and do not leak into the background. Tokens inside the region attend as before, and so does the
    unconditional branch; outside, the other words share what these had. A strength below 1 in
    ``steps`` multiplies the odds of these words outside the region by one minus it.

    Attributes:
        words: Words or phrases of the prompt, or token positions (BOS is 0); a word counts at its
            first occurrence, with all its tokens. Without any it does nothing.
        region: Where they are seen: a box ``(x0, y0, x1, y1)`` in parts of the picture from its
            upper left corner, or a mask as a file, a picture or an array ``(height, width)``,
            white inside. None: it does nothing.
        where: Cross-attention.
    """

    reference: ClassVar[str] = "Wang et al., ACM MM 2024, arXiv 2403.05053 (PrimeComposer)"
    families: ClassVar[str] = "UNet, PixArt: pictures with attention to text alone"

    words: Sequence[str | int] = ()
    region: Any = field(default=None, compare=False)
    where: Where = field(default=Where("cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.words
        listed: Any = [given] if isinstance(given, str | int) else given
        if not isinstance(listed, Sequence) or not all(is_word(one) for one in listed):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            raise SettingError(
                f"{self.name}: words={given!r} must be words of the prompt or token positions, "
                "such as ['red circle'] or [2, 3]"
            )
        object.__setattr__(self, "words", tuple(listed))  # pyright: ignore[reportUnknownArgumentType]
        if self.region is not None:
            read_regions(self.name, "region", [self.region])

    def settings(self) -> dict[str, Any]:
        """Plain values; of a mask its file or size."""
        region = None if self.region is None else plain_regions([self.region])[0]
        return super().settings() | {"region": region}

    def strength_at(self, index: int, total: int | None) -> float:
        is_on = bool(self.words) and self.region is not None
        return self.steps.strength(index, total) if is_on else 0.0

    def needs(self) -> Needs:
        return Needs(layout=True, prompts=any(isinstance(word, str) for word in self.words))

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

    def begin(self, run: RunStart) -> _State | None:
        if self.region is None:
            return None
        texts = [x.text for x in run.layouts.values() if x is not None and x.text is not None]
        length = min((text.stop - text.start for text in texts), default=None)
        found: list[tuple[int, ...]] = []
        for item in range(run.items):
            prompt = None if run.prompts is None else run.prompts[item][0]
            tokens = find_tokens(self.name, "words", tuple(self.words), prompt, length)
            found.append(tuple({p for positions in tokens for p in positions}))
        (region,) = read_regions(self.name, "region", [self.region])
        return _State(found, region)

    def edit_qkv(self, call: AttentionCall) -> None:
        at = call.pick(branch="cond")
        if not len(at) or call.layout is None or call.layout.text is None:
            return
        state: _State = call.state
        outside = state.outside(grid_of(call)).to(at.device)
        start = call.layout.text.start
        items = [call.rows[row // call.fold].item for row in at.tolist()]
        columns = [[start + position for position in state.positions[item]] for item in items]
        words = memberships(columns, call.key.shape[2]).to(at.device)
        forbidden = outside[:, None] & words[:, None, None]  # (rows, 1, n, keys)
        bias = bias_of(forbidden, call.strength, call.query.dtype)
        call.add_bias(on_heads(bias, 0.0, call.heads, call.query.shape[1]), at)
