"""Bounded Attention: each subject in its box, none takes on the looks of another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Move, Needs, Read, RunStart, Step
from attnctl.chosen_heads import of_heads, on_heads
from attnctl.editing.boxed_subjects import (
    FUNCTION_WORDS,
    boxed_items,
    lists_of,
    read_boxes,
    read_subjects,
    read_words,
)
from attnctl.editing.subject_masks import SubjectMasks, clustered_grid
from attnctl.editing.unet_maps import UNET_STAGES, grid_of
from attnctl.errors import (
    ConflictError,
    SettingError,
    UnsupportedModelError,
)
from attnctl.ops.bounded_attention import Box, box_losses, box_sums, step_size
from attnctl.registry import register
from attnctl.settings import check_number, steps_or_fraction
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole

Sums = tuple[Tensor, Tensor]


@dataclass(slots=True)
class _State:
    """One run: masks, what the gradient pass read (by site, for each item), and who moves."""

    masks: SubjectMasks
    sums: dict[str, tuple[str, list[Sums]]] = field(
        default_factory=dict[str, tuple[str, list[Sums]]]
    )
    refined_at: int | None = None
    moving: Tensor = field(default_factory=lambda: torch.zeros(0))


@register("bounded-attention")
@dataclass(frozen=True)
class BoundedAttention(Technique):
    """Draw several subjects inside boxes, and keep the looks of one from leaking into another.

    Masks on the logits bound attention: image tokens of a subject see their own subject and the
    background, and no other subject's words. In the first steps the boxes are the masks and the
    latents take steps against the gradient of the attention that lies outside of them; from then
    on masks are clusters of the run's own self-attention. A strength below 1 in ``steps``
    multiplies the odds of what is forbidden by one minus it, and scales the gradient steps.

    Attributes:
        boxes: One ``(x0, y0, x1, y1)`` for each subject, in parts of the picture's width and
            height from its upper left corner; for several prompts a list for each. Boxes may
            overlap; without any the technique is off.
        subjects: What belongs into each box: a word of the prompt or a phrase, a token position
            (BOS is 0), or several of these; the last one tells where the subject is, so let it be
            the noun. A word counts at its first occurrence; the second is ``dog#2``.
        filter_words: Words that no image token sees, as far as the prompt has them; by default
            English articles, prepositions, conjunctions, pronouns and numbers.
        init_step_size: Size of the gradient step at step 0, in latent units per unit of gradient,
            from 0; 8 is for Stable Diffusion 1.5, 18 for SDXL.
        final_step_size: Size that the steps come near at the end of ``guidance_steps``, from 0; 2
            is for Stable Diffusion 1.5, 5 for SDXL.
        guidance_steps: Steps with box masks and guidance: a number of steps, or a fraction of the
            run such as 0.3 or "30%".
        iterations: Most gradient steps in one step, from 0; 0 leaves the masks alone.
        stop_loss: Mean loss of a subject below which a step iterates no further, from 0.
        cross_loss: Weight of attention to the words in the loss, from 0.
        self_loss: Weight of self-attention in the loss, from 0.
        refresh: Steps after which the clusters are made anew, from 1.
        clusters: Clusters for each subject, from 0; 0 keeps the boxes as masks to the end.
        cross_threshold: Share of a word's strongest attention that counts as half of a subject's
            evidence, in [0, 1].
        self_threshold: Least evidence with which a cluster belongs to a subject, in [0, 1].
        loss_where: Layers whose attention the loss measures, and clusters are made of (the finest
            of them). By default the middle and the first level of the way up with attention in
            Stable Diffusion and SDXL.
        where: Layers that are masked.
    """

    reference: ClassVar[str] = "Dahary et al., ECCV 2024, arXiv 2403.16990"
    families: ClassVar[str] = "Stable Diffusion 1.x, 2.x and SDXL (UNets)"

    boxes: Sequence[Box] | Sequence[Sequence[Box]] = ()
    subjects: Sequence[Any] = ()
    filter_words: Sequence[str] | None = None
    init_step_size: float = 8.0
    final_step_size: float = 2.0
    guidance_steps: int | float | str = 15
    iterations: int = 5
    stop_loss: float = 0.2
    cross_loss: float = 1.5
    self_loss: float = 0.5
    refresh: int = 5
    clusters: int = 3
    cross_threshold: float = 0.2
    self_threshold: float = 0.2
    loss_where: Where = field(default=Where("mid|up,level=2"))
    where: Where = field(default=Where("self|cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        boxes = read_boxes(self.name, self.boxes)
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "subjects", read_subjects(self.name, self.subjects, boxes))
        if self.filter_words is not None:
            words = read_words(self.name, "filter_words", self.filter_words)
            object.__setattr__(self, "filter_words", words)
        guidance = steps_or_fraction(self.name, "guidance_steps", self.guidance_steps)
        object.__setattr__(self, "guidance_steps", guidance)
        object.__setattr__(self, "loss_where", Where.parse(self.loss_where))
        for name in ("init_step_size", "final_step_size", "stop_loss", "cross_loss", "self_loss"):
            check_number(self.name, name, getattr(self, name), at_least=0)
        for name in ("cross_threshold", "self_threshold"):
            check_number(self.name, name, getattr(self, name), at_least=0, at_most=1)
        for name, least in (("iterations", 0), ("refresh", 1), ("clusters", 0)):
            check_number(self.name, name, getattr(self, name), at_least=least)
            if not is_whole(getattr(self, name)):
                raise SettingError(
                    f"{self.name}: {name}={getattr(self, name)!r} must be a whole number"
                )

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self._has_boxes else 0.0

    def overrides(self, method: str) -> bool:
        is_off = (
            not (self.iterations and self.guidance_steps)
            or not (self.init_step_size or self.final_step_size)
            or not (self.cross_loss or self.self_loss)
        )
        return super().overrides(method) and not (method == "loss" and is_off)

    def has_loss_at(self, index: int, total: int | None) -> bool:
        return self.overrides("loss") and index < self._guided(total)

    def needs(self) -> Needs:
        reads: tuple[Read, ...] = ()
        if self.overrides("loss"):
            # Masses are asked for in `read`: their groups differ with resolution and picture.
            reads += (Read("qk", where=self.loss_where, grad=True),)
        if self.clusters:
            reads += (Read("probs", where=self.loss_where),)
        return Needs(reads=reads, layout=True, prompts=True)

    def select(self, sites: Sequence[Site], model: str) -> Where:
        for site in sites:
            if site.stage not in UNET_STAGES or site.kind not in ("self", "cross"):
                raise UnsupportedModelError(
                    f"{self.name} masks self- and cross-attention of picture UNets, but {site.path}"
                    f" is {site.kind} attention in a {site.stage} stage; it supports "
                    f"{self.families}"
                )
        return self.where

    def begin(self, run: RunStart) -> _State:
        if any(x is None or x.grid[0] > 1 for x in run.layouts.values()):
            raise UnsupportedModelError(f"{self.name} draws pictures; it supports {self.families}")
        if not self._has_boxes:
            return _State(SubjectMasks((), None))
        words = FUNCTION_WORDS if self.filter_words is None else self.filter_words
        items = boxed_items(self.name, self._lists, words, run)
        grid = None
        if self.clusters or self.overrides("loss"):
            grid = clustered_grid(self.name, self.loss_where, run, is_clustered=self.clusters > 0)
        return _State(SubjectMasks(items, grid))

    def edit_qkv(self, call: AttentionCall) -> None:
        state: _State = call.state
        self._follow(state, call)
        queries, keys = call.query.shape[2], call.key.shape[2]
        if call.site.kind == "self" and keys != queries:
            raise ConflictError(
                f"{self.name} masks pairs of image tokens, but at {call.site.path} another "
                f"technique shows {keys} keys to {queries} image tokens; give one of them other "
                "layers (where=) or other steps (steps=)"
            )
        bias = state.masks.bias(
            call.site.kind,
            grid_of(call),
            keys,
            call.query,
            strength=call.strength,
            is_background_open=call.pass_.kind == "gradient" and self._is_guided(call.step),
        )
        branch = "cond" if call.site.kind == "cross" else None
        rows = [row for row in call.rows if branch in (None, row.branch)]
        if bias is None or not rows:
            return
        if len(bias) > 1:
            bias = bias[[row.item for row in rows for _ in range(call.fold)]]
        bias = on_heads(bias, 0.0, call.heads, call.query.shape[1])
        call.add_bias(bias, call.pick(branch="cond") if branch else None)

    def read(self, call: AttentionCall, what: Read, value: Any) -> None:
        state: _State = call.state
        if what.grad:
            if self._is_guided(call.step):
                state.sums[call.site.path] = (call.site.kind, self._box_sums(state, call))
        elif grid_of(call) == state.masks.grid:
            items = [r.item for r in call.rows if r.branch == what.branch and r.kind == "main"]
            for item, probs in zip(items, value, strict=True):
                state.masks.add_map(call.site.kind, item, of_heads(probs, call.heads, dim=0))

    def loss(self, state: _State, step: Step) -> Tensor:
        sums, state.sums = list(state.sums.values()), {}
        losses: list[Tensor] = []
        for item in range(len(state.masks.items)):
            loss = torch.zeros((), device=sums[0][1][0][0].device)
            for kind, weight in (("cross", self.cross_loss), ("self", self.self_loss)):
                layers = [of_items[item] for found, of_items in sums if found == kind]
                if layers:
                    inside, outside = (
                        torch.stack(part).mean(dim=0) for part in zip(*layers, strict=True)
                    )
                    loss = loss + weight * box_losses(inside, outside).sum()
            losses.append(loss)
        return torch.stack(losses)

    def move(self, state: _State, step: Step, evaluation: int, loss: Tensor) -> Move:
        counts = torch.tensor([len(of_item) for of_item in state.masks.items]).to(loss)
        if evaluation == 0:
            state.moving = counts > 0
        size = step_size(
            step.index, self._guided(step.total), self.init_step_size, self.final_step_size
        )
        sizes = size * self.steps.strength(step.index, step.total) * state.moving
        state.moving = state.moving & (loss / counts.clamp_min(1) >= self.stop_loss)
        has_more = evaluation + 1 < self.iterations and bool(state.moving.any())
        return Move(sizes, again=has_more)

    @property
    def _lists(self) -> list[tuple[Any, Any]]:
        return lists_of(tuple(self.boxes), tuple(self.subjects))

    @property
    def _has_boxes(self) -> bool:
        return any(boxes for boxes, _ in self._lists)

    def _guided(self, total: int | None) -> int:
        """Number of the steps with box masks and guidance."""
        if isinstance(self.guidance_steps, int):
            return self.guidance_steps
        return math.ceil(float(self.guidance_steps) * (total or 1) - 1e-9)

    def _is_guided(self, step: Step) -> bool:
        return self.has_loss_at(step.index, step.total)

    def _follow(self, state: _State, call: AttentionCall) -> None:
        """Make masks from maps where it is time to, before the first layer of a step."""
        if call.pass_.kind == "main":
            state.sums.clear()  # left by a forward that another technique asked for
        step, last = call.step, state.refined_at
        is_due = last is None or step.index - last >= self.refresh
        if is_due and step.index >= self._guided(step.total) and state.masks.has_maps:
            state.masks.refine(self.clusters, self.cross_threshold, self.self_threshold)
            state.refined_at = step.index

    def _box_sums(self, state: _State, call: AttentionCall) -> list[Sums]:
        """Attention of each item's subjects inside their boxes, and in the background."""
        found: list[Sums] = []
        for item, subjects in enumerate(state.masks.items):
            boxes = state.masks.boxes(item, grid_of(call)).to(call.query.device)
            groups = boxes.T.float()
            if call.site.kind == "cross":
                groups = torch.zeros(call.key.shape[2], len(subjects), device=call.query.device)
                for place, positions in enumerate(subjects.positions):
                    groups[[*positions, subjects.eos], place] = 1.0
            masses = call.masses(groups, call.pick(branch="cond", item=item, kind="main"))[0]
            found.append(box_sums(of_heads(masses, call.heads, dim=0), boxes))
        return found
