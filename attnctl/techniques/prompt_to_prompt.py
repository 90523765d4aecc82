"""Prompt-to-Prompt: edit a picture by its prompt, with the attention maps of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, LatentsCall, Layout, Needs, RunStart
from attnctl.editing.items import check_items
from attnctl.editing.paired_rows import (
    Pair,
    edited_items,
    joined_pairs,
    paired_rows,
    with_target_output,
)
from attnctl.editing.prompt_edits import (
    EDITS,
    as_tuples,
    map_edit,
    positions_of,
    read_bounds,
    read_window,
    windows,
    word_list,
)
from attnctl.editing.unet_maps import map_grid, refuse_transformers
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.ops.map_injection import MapEdit, inject_map
from attnctl.ops.word_masks import blend_latents, blend_mask
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.tokens import PromptTokens
from attnctl.where import Where

WORDS = ("blend_words", "subtract_words")


@dataclass(frozen=True, slots=True)
class _Target:
    """How one target item is edited: its map edit and when which columns are taken."""

    edit: MapEdit
    windows: Tensor


@dataclass(slots=True)
class _State:
    targets: dict[int, _Target]
    self_steps: range
    text: slice
    blend_grid: tuple[int, int] | None
    blend_from: int
    words: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    subtracted: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    sums: dict[tuple[int, bool], Tensor] = field(default_factory=dict[tuple[int, bool], Tensor])


@register("prompt-to-prompt")
@dataclass(frozen=True)
class PromptToPrompt(Technique):
    """Edit a picture by its prompt: the target takes the source's attention maps, word by word.

    Source and target are items of one batch, ``prompt=[source, target]`` with equal latents. The
    conditional row of the target is edited; the source is never touched. A target shows its own
    map to techniques that read attention. Words are those of the tokenizer, so punctuation stands
    apart. Alignment and windows follow the authors' code; how maps are swapped and latents blended
    was reconstructed from copies of their notebooks.

    Attributes:
        edit: "replace" swaps words one for one, "refine" adds or drops words, "reweight" keeps the
            source's maps and only weighs words.
        weights: Factor of the map of words of the target, such as {red: 2.0}; from -2 to 5 is
            useful, 0 removes a word.
        cross_replace_steps: How long cross-attention maps are taken: a fraction of the run, a
            start and an end, or a mapping from words of the target (and ``default_``) to these.
        self_replace_steps: How long self-attention maps are taken: a fraction, or start and end.
        self_max_tokens: Largest self-attention layers that are edited, in tokens.
        blend_words: Words whose region may change, the rest stays the source's: words of both
            prompts, or a list for the source and one for the target.
        subtract_words: Words whose region may not change, likewise.
        blend_threshold: Share of a word map's maximum that belongs to its region, in [0, 1].
        blend_start: Fraction of the run after which the source is kept outside the region.
        blend_grid: Side of the maps that blending reads, in cells; by default a quarter of the
            latents' side, or the next larger one.
        renormalise: Scale the rows of edited maps to sum 1; the reference does not.
        source: Item of the batch that is kept.
        target: Item, or items, that are edited.
    """

    reference: ClassVar[str] = (
        "Hertz et al., ICLR 2023, arXiv 2208.01626; its controllers reconstructed from copies of "
        "the authors' notebooks"
    )
    families: ClassVar[str] = "Stable Diffusion 1.x, 2.x and SDXL (UNets)"
    claims: ClassVar[frozenset[str]] = frozenset({"query", "kv"})

    edit: str = "refine"
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    cross_replace_steps: Any = 0.8
    self_replace_steps: Any = 0.4
    self_max_tokens: int = 256
    blend_words: Any = ()
    subtract_words: Any = ()
    blend_threshold: float = 0.3
    blend_start: float = 0.0
    blend_grid: int | None = None
    renormalise: bool = False
    source: int = 0
    target: Any = 1
    where: Where = field(default=Where("self|cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit not in EDITS:
            raise SettingError(f"{self.name}: edit={self.edit!r}; {nearest(str(self.edit), EDITS)}")
        for name in ("weights", "cross_replace_steps", "self_replace_steps", *WORDS, "target"):
            object.__setattr__(self, name, as_tuples(getattr(self, name)))
        for word, factor in self.weights.items():
            check_number(self.name, f"weights[{word!r}]", factor)
        read_bounds(self.name, "cross_replace_steps", self.cross_replace_steps)
        read_window(self.name, "self_replace_steps", self.self_replace_steps)
        for name in WORDS:
            word_list(self.name, name, getattr(self, name))
        check_number(self.name, "blend_threshold", self.blend_threshold, at_least=0, at_most=1)
        check_number(self.name, "blend_start", self.blend_start, at_least=0, at_most=1)
        check_number(self.name, "self_max_tokens", self.self_max_tokens, at_least=0)
        if self.subtract_words and not self.blend_words:
            raise SettingError(f"{self.name}: subtract_words= needs blend_words=")
        edited_items(self.name, self.source, self.target)

    __hash__ = object.__hash__

    @property
    def targets(self) -> tuple[int, ...]:
        """Items that are edited."""
        return edited_items(self.name, self.source, self.target)

    def needs(self) -> Needs:
        return Needs(couples=True, layout=True, prompts=True)

    def overrides(self, method: str) -> bool:
        if method == "after_step":
            return bool(self.blend_words)
        return super().overrides(method)

    def select(self, sites: Sequence[Site], model: str) -> Where:
        refuse_transformers(self.name, sites, "edits the cross-attention maps of UNets")
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        kept: list[Site] = []
        for site in sites:
            layout = layouts.get(site)
            tokens = 0 if layout is None else layout.grid[1] * layout.grid[2]
            if site.kind == "cross" or (site.kind == "self" and tokens <= self.self_max_tokens):
                kept.append(site)
        return tuple(kept)

    def begin(self, run: RunStart) -> _State:
        check_items(self.name, run.items, source=self.source, target=self.targets)
        if run.prompts is None or run.total is None:
            raise SettingError(
                f"{self.name}: it aligns the words of the prompts, but the pipeline was given "
                "prompt_embeds (or there is no pipeline); call it with prompt=[source, target]"
            )
        cross = {s: run.layouts[s.path] for s in run.sites if s.kind == "cross"}
        length = max((x.text.stop for x in cross.values() if x and x.text), default=0)
        if any(x is not None and x.grid[0] > 1 for x in run.layouts.values()):
            raise UnsupportedModelError(f"{self.name} edits pictures, not frames")
        prompts = {i: run.prompts[i][0] for i in (self.source, *self.targets)}
        first, last = read_window(self.name, "self_replace_steps", self.self_replace_steps)
        grid = map_grid(self.name, cross, self.blend_grid) if self.blend_words else None
        state = _State(
            targets={i: self._edit(prompts, i, run.total, length) for i in self.targets},
            self_steps=range(int(run.total * first), int(run.total * last)),
            text=slice(0, length),
            blend_grid=grid,
            blend_from=int(self.blend_start * run.total),
        )
        if grid is not None:
            self._find_words(state, prompts)
        return state

    def _edit(
        self, prompts: Mapping[int, PromptTokens], item: int, total: int, length: int
    ) -> _Target:
        pair = (prompts[self.source], prompts[item])
        bounds = read_bounds(self.name, "cross_replace_steps", self.cross_replace_steps)
        return _Target(
            map_edit(self.name, self.edit, *pair, self.weights, length),
            windows(bounds, prompts[item], total, length),
        )

    def _find_words(self, state: _State, prompts: Mapping[int, PromptTokens]) -> None:
        for name, found in (("blend_words", state.words), ("subtract_words", state.subtracted)):
            of_source, of_target = word_list(self.name, name, getattr(self, name))
            for item, prompt in prompts.items():
                words = of_source if item == self.source else of_target
                found[item] = positions_of(self.name, name, words, prompt)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        pairs = paired_rows(call, self.source, self.targets, branch="cond")
        if not pairs:
            return out
        if call.site.kind == "self":
            return self._edit_self(call, out, pairs)
        layout = call.layout
        is_read = layout is not None and layout.grid[1:] == call.state.blend_grid
        if is_read and call.rows[int(pairs[0][0][0])].kind == "main":
            self._gather(call, self.source, pairs[0][0], None)
        for source, target in pairs:
            out = self._edit_cross(call, out, source, target, is_read=is_read)
        return out

    def _edit_self(self, call: AttentionCall, out: Tensor, pairs: Sequence[Pair]) -> Tensor:
        if call.step.index not in call.state.self_steps:
            return out
        source, target = joined_pairs(pairs)
        taken = call.attend(
            call.query[source], call.key[source], call.value[target], call.mask_of(target)
        )
        return with_target_output(out, target, taken, call.strength, call.heads)

    def _edit_cross(
        self, call: AttentionCall, out: Tensor, source: Tensor, target: Tensor, *, is_read: bool
    ) -> Tensor:
        row = call.rows[int(target[0]) // call.fold]
        edit: _Target = call.state.targets[row.item]
        window = edit.windows[call.step.index]
        is_read = is_read and row.kind == "main"
        probs: Tensor | None = None
        if bool(window.all()) and edit.edit.is_plain and call.strength == 1.0:
            # The source's own query and key give its map without rounding.
            taken = call.attend(
                call.query[source], call.key[source], call.value[target], call.mask_of(target)
            )
            if is_read:
                self._gather(call, row.item, source, None)
            return with_target_output(out, target, taken, 1.0, call.heads)
        if bool(window.any()):
            probs = inject_map(
                call.columns(call.state.text, source),
                call.columns(call.state.text, target),
                edit.edit,
                window,
                strength=call.strength,
                renormalise=self.renormalise,
            )
            taken = probs @ call.value[target].to(probs)
            out = with_target_output(out, target, taken, 1.0, call.heads)
        if is_read:
            self._gather(call, row.item, target, probs)
        return out

    def _gather(self, call: AttentionCall, item: int, at: Tensor, probs: Tensor | None) -> None:
        """Add up where the words of blending look, over heads, layers and steps."""
        state: _State = call.state
        for is_blend, found in ((True, state.words), (False, state.subtracted)):
            positions = found[item]
            if not positions:
                continue
            part = call.columns(positions, at) if probs is None else probs[..., positions]
            assert state.blend_grid is not None  # maps are gathered for it alone
            seen = part.float().sum((0, 1, 3)).unflatten(0, state.blend_grid)
            before = state.sums.get((item, is_blend))
            state.sums[(item, is_blend)] = seen if before is None else before + seen

    def after_step(self, call: LatentsCall) -> Tensor | None:
        state: _State = call.state
        if call.step.index < state.blend_from or not state.sums:
            return None
        latents, size = call.latents, (call.latents.shape[-2], call.latents.shape[-1])
        source = latents[self.source : self.source + 1]
        kept = self._mask(state, self.source, size)
        parts = list(latents.split(1))
        for item in self.targets:
            parts[item] = blend_latents(source, parts[item], kept | self._mask(state, item, size))
        return torch.cat(parts)

    def _mask(self, state: _State, item: int, size: tuple[int, int]) -> Tensor:
        """Where the words of an item look, bool ``(1, 1, H, W)``."""
        device = next(iter(state.sums.values())).device
        seen, forbidden = (state.sums.get((item, is_blend)) for is_blend in (True, False))
        if seen is None:
            return torch.zeros(1, 1, *size, dtype=torch.bool, device=device)
        mask = blend_mask(seen[None], size, self.blend_threshold)
        if forbidden is None:
            return mask
        return mask & ~blend_mask(forbidden[None], size, self.blend_threshold, pool=False)
