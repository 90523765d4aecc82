"""IR-Diffusion: given characters together in one scene, each drawn after its own portrait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.calls import AttentionCall, Needs, RunStart
from attnctl.editing.boxed_subjects import read_words
from attnctl.editing.items import item_number, item_numbers
from attnctl.editing.paired_rows import with_target_output
from attnctl.editing.portraits import (
    Grid,
    Places,
    SubjectPlaces,
    plain_regions,
    portrait_rows,
    read_regions,
)
from attnctl.editing.prompt_edits import positions_of
from attnctl.editing.unet_maps import grid_of, map_grid, refuse_transformers
from attnctl.errors import ConflictError, NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.ir_diffusion import blend_portraits, extended_attention
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole

SDXL_START = 36  # of 70 layers: the third block of the first transformer on the way up

_REGIONS = ("portrait_masks", "target_masks")
_PARTS = ("isolate", "reposition")


@dataclass(slots=True)
class _State:
    """One run: where the subjects are, what reads portraits, and words whose maps are read.

    ``words`` has an item, a number of a subject and the positions of its word.
    """

    places: SubjectPlaces
    readers: frozenset[str]
    words: tuple[tuple[int, int, list[int]], ...] = ()
    map_grid: Grid | None = None
    iteration: int = -1


@register("ir-diffusion")
@dataclass(frozen=True)
class IRDiffusion(Technique):
    """Draw several given characters in one scene, each after a portrait in the same batch.

    Portraits and scene are items of one batch, ``prompt=[portrait, portrait, scene]``. In
    self-attention of the scene, subjects may not see each other (isolation); in later layers each
    also sees the tokens of its portrait, scaled to its place (reposition). In cross-attention each
    subject follows mostly its portrait's prompt. All of it in both guidance branches; portraits
    are never touched. The masks say where each subject is; the paper's detector for them is not
    included. A strength below 1 in ``steps`` mixes with the plain output.

    Attributes:
        portrait_masks: For each portrait where its subject is: a file, a picture or an array
            ``(height, width)``, white inside, or a box ``(x0, y0, x1, y1)`` in parts of the
            picture from its upper left corner. Without masks and words the technique is off.
        target_masks: For each portrait where its subject is in the scene, likewise as a file, a
            picture, an array or a box; a cell that lies in two sees neither subject.
        mask_words: Instead of masks a word for each portrait, of its prompt and of the scene's;
            masks are where these words looked in the step before, so that nothing happens in the
            first one. Meant for quick tries: a wrong mask swaps subjects.
        portraits: Items of the batch that are portraits, from 0.
        target: Item of the scene.
        isolate: Keep subjects of the scene from seeing each other.
        reposition: Let subjects of the scene see their portraits.
        start_layer: First layer that sees the portraits, counted over self-attention in execution
            order. By default 36 if there are so many (SDXL, of 70), else the first on the way up.
        dropout: Share of a subject's cells, drawn anew at each step, that do not see the portrait,
            in [0, 1).
        portrait_bias: Added to the logits of portraits; 0 weighs them like the scene's own.
        cross_weight: Weight of the portraits' prompts in cross-attention, in [0, 1]; 0 is off.
        seed: Seed of the dropout, a whole number.
        where: Self-attention and cross-attention that it acts on.
    """

    reference: ClassVar[str] = "He et al. 2024, arXiv 2411.19261, and its code"
    families: ClassVar[str] = "Stable Diffusion 1.x, 2.x and SDXL (UNets)"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    portrait_masks: Any = field(default=(), compare=False)
    target_masks: Any = field(default=(), compare=False)
    mask_words: Any = ()
    portraits: Any = (0, 1)
    target: int = 2
    isolate: bool = True
    reposition: bool = True
    start_layer: int | None = None
    dropout: float = 0.5
    portrait_bias: float = 0.0
    cross_weight: float = 0.9
    seed: int = 0
    where: Where = field(default=Where("self|cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = item_numbers(self.name, "portraits", self.portraits)
        object.__setattr__(self, "portraits", numbers)
        if item_number(self.name, "target", self.target) in numbers:
            raise SettingError(
                f"{self.name}: target={self.target} is among portraits={numbers}; the scene must "
                "be a picture of its own, such as portraits=(0, 1), target=2"
            )
        words = read_words(self.name, "mask_words", self.mask_words)
        object.__setattr__(self, "mask_words", words)
        counts = {n: len(read_regions(self.name, n, getattr(self, n))) for n in _REGIONS}
        self._check_counts({**counts, "mask_words": len(words)})
        for name in _PARTS:
            if not isinstance(getattr(self, name), bool):
                given = getattr(self, name)
                raise SettingError(f"{self.name}: {name}={given!r} must be True or False")
        for name, value in (("start_layer", self.start_layer), ("seed", self.seed)):
            if value is not None and not is_whole(value):
                raise SettingError(f"{self.name}: {name}={value!r} must be a whole number")
        if self.start_layer is not None:
            check_number(self.name, "start_layer", self.start_layer, at_least=0)
        for name in ("dropout", "cross_weight"):
            check_number(self.name, name, getattr(self, name), at_least=0, at_most=1)
        if self.dropout == 1:
            raise SettingError(
                f"{self.name}: dropout=1 would hide the portraits; use less, or reposition=False"
            )
        check_number(self.name, "portrait_bias", self.portrait_bias)

    def _check_counts(self, counts: dict[str, int]) -> None:
        """Refuse masks and words that are not one for each portrait."""
        given = {name: count for name, count in counts.items() if count}
        if given and set(given) not in ({*_REGIONS}, {"mask_words"}):
            raise SettingError(
                f"{self.name}: give portrait_masks= and target_masks= together, or mask_words= "
                f"alone, not {' and '.join(given)}"
            )
        for name, count in given.items():
            if count != len(self.portraits):
                raise SettingError(
                    f"{self.name}: {name} has {count} entries for {len(self.portraits)} portraits; "
                    f"give one for each of portraits={self.portraits}"
                )

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **{n: plain_regions(getattr(self, n)) for n in _REGIONS}}

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self.is_on else 0.0

    @property
    def is_on(self) -> bool:
        """Whether it knows of subjects, and does something for them."""
        is_known = len(self.portrait_masks) > 0 or len(self.mask_words) > 0
        return is_known and (self.isolate or self.reposition or self.cross_weight > 0)

    def needs(self) -> Needs:
        return Needs(couples=True, layout=True, prompts=bool(self.mask_words))

    def select(self, sites: Sequence[Site], model: str) -> Where:
        refuse_transformers(self.name, sites, "draws portraits into the scenes of UNets")
        chosen = self.where.sites(sites)
        if self.reposition and self.start_layer is not None and not self._readers(chosen):
            last = max((s.layer for s in sites if s.kind == "self"), default=-1)
            raise NoSiteError(
                f"{self.name}: where={str(self.where)!r} has no self-attention from layer "
                f"start_layer={self.start_layer} on; this model has layers 0 to {last}. Use "
                "reposition=False to see no portraits"
            )
        return self.where

    def _readers(self, sites: Sequence[Site]) -> frozenset[str]:
        """Paths of the layers that see the portraits."""
        layers = [site for site in sites if site.kind == "self" and self.reposition]
        if self.start_layer is not None:
            chosen = [site for site in layers if site.layer >= self.start_layer]
        else:
            on_way_up = [site for site in layers if site.stage == "up"]
            chosen = [site for site in on_way_up if site.layer >= SDXL_START] or on_way_up
        return frozenset(site.path for site in chosen)

    def begin(self, run: RunStart) -> _State | None:
        if not self.is_on:
            return None
        beyond = [item for item in (*self.portraits, self.target) if item >= run.items]
        if beyond:
            raise SettingError(
                f"{self.name}: portraits={self.portraits} and target={self.target} name picture "
                f"{beyond[0]}, but this run makes {run.items} (numbered from 0); call the pipeline "
                "with one prompt for each, prompt=[portrait, portrait, scene]"
            )
        if any(x is None or x.is_video for x in run.layouts.values()):
            raise UnsupportedModelError(
                f"{self.name} draws pictures, not clips; it supports {self.families}"
            )
        portraits, scene = (read_regions(self.name, n, getattr(self, n)) for n in _REGIONS)
        places = SubjectPlaces(
            portraits, scene,
            isolate=self.isolate, dropout=self.dropout, seed=self.seed, bias=self.portrait_bias,
        )  # fmt: skip
        state = _State(places, self._readers(run.sites))
        if self.mask_words:
            layouts = {s: run.layouts[s.path] for s in run.sites if s.kind == "cross"}
            state.map_grid = map_grid(self.name, layouts, None)
            state.words = self._words(run)
        return state

    def _words(self, run: RunStart) -> tuple[tuple[int, int, list[int]], ...]:
        if run.prompts is None:
            raise SettingError(
                f"{self.name}: mask_words= names words, but the pipeline was given prompt_embeds; "
                "call it with prompt=, or give masks"
            )
        prompts = run.prompts
        return tuple(
            (item, subject, positions_of(self.name, "mask_words", [word], prompts[item][0]))
            for subject, word in enumerate(self.mask_words)
            for item in (self.portraits[subject], self.target)
        )

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        state: _State = call.state
        grid = grid_of(call)
        if call.step.iteration != state.iteration:
            state.places.use_maps(self.portraits, self.target)
            state.iteration = call.step.iteration
        if call.site.kind == "cross" and call.pass_.kind == "main" and grid == state.map_grid:
            _add_maps(state, call, grid)
        places = state.places.at(grid, call.query.device)
        rows = portrait_rows(call, self.portraits, self.target)
        if places is None or not rows.numel():
            return out
        if call.site.kind == "self":
            edited = self._seeing_portraits(call, places, grid, rows)
        else:
            edited = self._told_of_portraits(call, places, rows, out)
        return out if edited is None else with_target_output(
            out, rows[0], edited, call.strength, call.heads
        )  # fmt: skip

    def _seeing_portraits(
        self, call: AttentionCall, places: Places, grid: Grid, rows: Tensor
    ) -> Tensor | None:
        """Self-attention of the scene, ``(r, H, n, D)``; ``None`` where it stays plain."""
        target = rows[0]
        is_read = call.site.path in call.state.readers
        moved = places.moved if is_read else ()
        if not places.is_isolated and not any(len(tokens) for tokens in moved):
            return None
        if call.key.shape[2] != call.query.shape[2]:
            raise ConflictError(
                f"{self.name} masks pairs of image tokens, but at {call.site.path} another "
                f"technique shows {call.key.shape[2]} keys to {call.query.shape[2]} image tokens; "
                "give one of them other layers (where=) or other steps (steps=)"
            )
        portraits = [
            (call.key[row][:, :, tokens], call.value[row][:, :, tokens])
            for row, tokens in zip(rows[1:], moved, strict=False)
        ]
        bias = call.state.places.logits(grid, call.step.index, call.query, is_read=is_read)
        mask = call.additive_mask()  # of other techniques
        if mask is not None:
            own = mask[target] if len(mask) > 1 else mask
            own = own.expand(*own.shape[:3], call.key.shape[2])
            bias = bias + F.pad(own, (bias.shape[1] - own.shape[3], 0))
            bias = bias.clamp_min(torch.finfo(bias.dtype).min / 2)
        own_tokens = (call.key[target], call.value[target])
        return extended_attention(call.query[target], own_tokens, portraits, bias, call.attend)

    def _told_of_portraits(
        self, call: AttentionCall, places: Places, rows: Tensor, out: Tensor
    ) -> Tensor | None:
        """Cross-attention of the scene, ``(r, H, n, D)``; ``None`` where it stays plain."""
        if not self.cross_weight:
            return None
        query = call.query[rows[0]]
        told = [
            call.attend(query, call.key[row], call.value[row], call.mask_of(row))
            for row in rows[1:]
        ]
        return blend_portraits(out[rows[0]], torch.stack(told), places.targets, self.cross_weight)


def _add_maps(state: _State, call: AttentionCall, grid: Grid) -> None:
    """Add where the words look to the maps of this step."""
    for item, subject, positions in state.words:
        at = call.pick(branch="cond", item=item, kind="main")
        if len(at):
            seen = call.columns(positions, at)[0].sum(dim=-1).mean(dim=0)
            state.places.add_map(item, subject, seen.unflatten(0, grid))
