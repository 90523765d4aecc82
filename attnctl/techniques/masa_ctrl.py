"""MasaCtrl: a target picture reads the self-attention keys and values of a source picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, Read, RunStart
from attnctl.editing.items import check_items
from attnctl.editing.paired_rows import (
    Pair,
    edited_items,
    joined_pairs,
    paired_rows,
    with_target_output,
)
from attnctl.editing.prompt_edits import as_tuples, positions_of, word_list
from attnctl.editing.region_masks import as_mask, plain_mask, resized_mask
from attnctl.editing.unet_maps import grid_of, map_grid, refuse_transformers
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.mutual_attention import masked_mutual_attention, shared_rows, union_attention
from attnctl.ops.word_masks import subject_mask
from attnctl.registry import register
from attnctl.schedule import Schedule, after
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

MAPS = Where("cross")


@dataclass(slots=True)
class _State:
    map_grid: tuple[int, int] | None = None
    words: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    iteration: int = -1
    maps: dict[int, list[Tensor]] = field(default_factory=dict[int, list[Tensor]])
    masks: tuple[Tensor, Tensor] | None = None


@register("masa-ctrl")
@dataclass(frozen=True)
class MasaCtrl(Technique):
    """Change pose or layout, keep the subject: the target reads the source's keys and values.

    Source and target are items of one batch, ``prompt=[source, target]`` with equal latents. From
    a step and a layer on, self-attention of the target asks with its own queries in the source, in
    both guidance branches; the source is never touched. Mixing (a ramp in ``steps``) is not in the
    paper; a part of the subject mask that the source lacks sees the whole source.

    Attributes:
        start_layer: First layer that is changed, counted over self-attention in execution order;
            10 of 16 is for Stable Diffusion 1.x, for SDXL the authors show 44, 54 and 64 of 70.
        union: Let the target see its own keys too, in one softmax.
        mask_words: Words whose cross-attention makes the masks of the subject: words of both
            prompts, or a list for the source and one for the target. Empty: no masks from words.
        mask_threshold: Least normalised attention that belongs to the subject, in [0, 1].
        mask_grid: Side of the maps that masks are made of, in cells; by default a quarter of the
            latents' side, or the next larger one.
        source_mask: Mask of the subject in the source: a file, a picture or an array, white inside.
        target_mask: Mask of the subject in the target; with ``source_mask``.
        source: Item of the batch that is kept.
        target: Item, or items, that are edited.
        steps: When it acts; from step 4 of 50 in the reference.
        where: Self-attention layers; ``start_layer`` counts among all of them.
    """

    reference: ClassVar[str] = "Cao et al., ICCV 2023, arXiv 2304.08465, and its code"
    families: ClassVar[str] = "Stable Diffusion 1.x, 2.x and SDXL (UNets)"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    start_layer: int = 10
    union: bool = False
    mask_words: Any = ()
    mask_threshold: float = 0.1
    mask_grid: int | None = None
    source_mask: Any = field(default=None, compare=False)
    target_mask: Any = field(default=None, compare=False)
    source: int = 0
    target: Any = 1
    steps: Schedule = field(default=after(4), kw_only=True)
    where: Where = field(default=Where("self"), kw_only=True)

    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_words", "target"):
            object.__setattr__(self, name, as_tuples(getattr(self, name)))
        check_number(self.name, "start_layer", self.start_layer, at_least=0)
        check_number(self.name, "mask_threshold", self.mask_threshold, at_least=0, at_most=1)
        word_list(self.name, "mask_words", self.mask_words)
        if (self.source_mask is None) != (self.target_mask is None):
            raise SettingError(f"{self.name}: give source_mask= and target_mask= together")
        if sum((bool(self.mask_words), self.source_mask is not None, self.union)) > 1:
            raise SettingError(
                f"{self.name}: union=, mask_words= and source_mask= exclude each other; keep one"
            )
        for mask in ("source_mask", "target_mask"):
            if getattr(self, mask) is not None:
                as_mask(self.name, mask, getattr(self, mask))
        edited_items(self.name, self.source, self.target)

    def settings(self) -> dict[str, Any]:
        masks = {n: plain_mask(getattr(self, n)) for n in ("source_mask", "target_mask")}
        return {**super().settings(), **masks}

    @property
    def targets(self) -> tuple[int, ...]:
        """Items that are edited."""
        return edited_items(self.name, self.source, self.target)

    @property
    def replaces(self) -> bool:
        """Whether keys and values are replaced at all sites alike."""
        return not (self.union or self.mask_words or self.source_mask is not None)

    def overrides(self, method: str) -> bool:
        if method == "edit_qkv":
            return self.replaces
        if method == "edit_output":
            return not self.replaces
        return super().overrides(method)

    def needs(self) -> Needs:
        reads = (Read("columns", where=MAPS),) if self.mask_words else ()
        return Needs(reads=reads, couples=True, layout=True, prompts=bool(self.mask_words))

    def select(self, sites: Sequence[Site], model: str) -> Where:
        refuse_transformers(self.name, sites, "shares the self-attention of UNets")
        found = [s for s in self.where.sites(sites) if s.kind == "self"]
        chosen = [s.layer for s in found if s.layer >= self.start_layer]
        if not chosen:
            last = max((s.layer for s in sites if s.kind == "self"), default=-1)
            raise NoSiteError(
                f"{self.name}: where={str(self.where)!r} has no self-attention from layer "
                f"start_layer={self.start_layer} on; this model has layers 0 to {last}. Later "
                "layers keep the subject's look, earlier ones its layout too"
            )
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        kept = [s for s in sites if s.kind == "self" and s.layer >= self.start_layer]
        if not self.mask_words:
            return tuple(kept)
        cross = {s: layouts.get(s) for s in sites if s.kind == "cross"}
        grid = map_grid(self.name, cross, self.mask_grid)
        return (*(s for s, x in cross.items() if x is not None and x.grid[1:] == grid), *kept)

    def begin(self, run: RunStart) -> _State:
        check_items(self.name, run.items, source=self.source, target=self.targets)
        if any(x is not None and x.grid[0] > 1 for x in run.layouts.values()):
            raise UnsupportedModelError(f"{self.name} edits pictures, not frames")
        state = _State()
        if self.source_mask is not None:
            state.masks = (
                as_mask(self.name, "source_mask", self.source_mask),
                as_mask(self.name, "target_mask", self.target_mask),
            )
        if not self.mask_words:
            return state
        if run.prompts is None:
            raise SettingError(
                f"{self.name}: mask_words= names words, but the pipeline was given prompt_embeds; "
                "call it with prompt=[source, target], or give masks"
            )
        of_source, of_target = word_list(self.name, "mask_words", self.mask_words)
        for item in (self.source, *self.targets):
            words = of_source if item == self.source else of_target
            state.words[item] = positions_of(self.name, "mask_words", words, run.prompts[item][0])
        layouts = {s: run.layouts[s.path] for s in run.sites if s.kind == "cross"}
        state.map_grid = map_grid(self.name, layouts, self.mask_grid)
        return state

    def edit_qkv(self, call: AttentionCall) -> None:
        pairs = paired_rows(call, self.source, self.targets)
        if not pairs:
            return
        source, target = joined_pairs(pairs)
        strength, heads = call.strength, call.heads
        call.key = shared_rows(call.key, source, target, strength=strength, heads=heads)
        call.value = shared_rows(call.value, source, target, strength=strength, heads=heads)

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        state: _State = call.state
        if call.step.iteration != state.iteration:
            state.iteration, state.maps = call.step.iteration, {}
        items = [r.item for r in call.rows if r.branch == what.branch and r.kind == "main"]
        assert state.map_grid is not None  # maps are read for it alone
        for item, columns in zip(items, value, strict=True):
            if item in state.words:
                seen = columns[..., state.words[item]].sum(-1).mean(0)
                state.maps.setdefault(item, []).append(seen.unflatten(0, state.map_grid))

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        for source, target in paired_rows(call, self.source, self.targets):
            edited = self._attend(call, (source, target))
            out = with_target_output(out, target, edited, call.strength, call.heads)
        return out

    def _attend(self, call: AttentionCall, pair: Pair) -> Tensor:
        source, target = pair
        query, key, value = call.query[target], call.key[source], call.value[source]
        if self.union:
            own = (call.key[target], call.value[target])
            return union_attention(query, own, (key, value), call.attend)
        masks = self._masks(call, call.rows[int(target[0]) // call.fold].item)
        if masks is None:
            return call.attend(query, key, value)
        return masked_mutual_attention(query, key, value, *masks, call.attend)

    def _masks(self, call: AttentionCall, item: int) -> tuple[Tensor, Tensor] | None:
        """Masks of the subject in source and target, ``(tokens,)``; ``None`` before any map."""
        state: _State = call.state
        size = grid_of(call)
        if state.masks is not None:
            given = (resized_mask(mask, size) for mask in state.masks)
        elif state.iteration != call.step.iteration or self.source not in state.maps:
            return None
        else:
            maps = (torch.stack(state.maps[one]).mean(0) for one in (self.source, item))
            given = (subject_mask(one, size, self.mask_threshold) for one in maps)
        of_source, of_target = (mask.flatten().to(call.query.device) for mask in given)
        return of_source, of_target
