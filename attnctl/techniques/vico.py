"""Vico: no named subject is left out of a clip, judged by attention over space and time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Move, Needs, Read, RunStart, Step
from attnctl.chosen_heads import of_heads
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError, nearest
from attnctl.named_words import spread
from attnctl.ops.adam import Adam
from attnctl.ops.attend_and_excite import step_sizes
from attnctl.ops.vico import (
    FEWEST_SUBJECTS,
    FORMS,
    TEMPERATURE,
    weakest_losses,
    word_influence,
)
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number, grid_or_none, step_values, two_numbers, value_at
from attnctl.sites import Site
from attnctl.subjects import check_subjects, lists_of, locate
from attnctl.technique import Technique
from attnctl.tokens import PromptTokens
from attnctl.where import Where

USUAL_LEVEL = 2  # a quarter of the latents' side, the reference's attn_res

_PLACE = re.compile(r"(.+)\.(?:attentions|motion_modules)\.(\d+)\.")
_CHECKS = {"thresholds": step_values, "resolution": grid_or_none, "scale_range": two_numbers}


@dataclass(frozen=True, slots=True)
class _Place:
    """Cross-attention of one place of the U-Net, and the temporal attention behind it."""

    cross: tuple[Site, ...]
    temporal: tuple[Site, ...]


@dataclass(slots=True)
class _State:
    """One run: token positions of each item's subjects, what the forward read, the optimiser."""

    subjects: list[list[int]]
    kept: list[tuple[int, int | None]]
    places: list[_Place]
    grid: tuple[int, int, int]
    sizes: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    adam: Adam = field(default_factory=Adam)

    @property
    def end(self) -> int | None:
        """End of the token columns that compete in any item."""
        ends = [last for _, last in self.kept if last is not None]
        return max(ends) if len(ends) == len(self.kept) else None


@register("vico")
@dataclass(frozen=True)
class Vico(Technique):
    """Move early latents of a clip so that the subject with the least influence gains some.

    A word reaches the pixels of a frame by cross-attention, and other frames through the temporal
    attention behind it; its influence is the width of the best such path. At each step the
    latents are moved by Adam against one minus the strongest pixel of the weakest subject. At the
    steps of ``thresholds`` this repeats. Fewer than two subjects: nothing is moved.

    Attributes:
        subjects: Two or more words of the prompt, or token positions (BOS is 0); for several
            prompts a list for each. A word of several tokens counts by its last one, at its first
            occurrence.
        init_step: How far a move shifts each element of the latents, about, at the start of the
            run, in latent units; 0 is off. In float16 a move below about a thousandth of an
            element is rounded away.
        scale_range: Factors under the square root at the first and the last step.
        thresholds: Step (or fraction of the run) to the loss, in [0, 1], below which moving
            stops; there up to ``max_iterations`` moves are made.
        threshold: The same for the other steps, which make one move, in [0, 1].
        max_iterations: Most moves at a step of ``thresholds``, at least 1.
        flow: How paths are joined: ``soft`` smooth minimum and maximum, ``hard`` the minimum and
            maximum themselves, ``rollout`` products of the maps.
        temperature: Softness of ``soft``, above 0.
        resolution: Height and width (or one side) of the maps in cells. By default the grid with
            a quarter of the latents' side, or the nearest one.
        steps: The default is the first half, as the authors have it.
    """

    reference: ClassVar[str] = "Yang and Wang, arXiv 2407.06182"
    families: ClassVar[str] = "UNetMotion (AnimateDiff)"
    claims: ClassVar[frozenset[str]] = frozenset({"optimiser"})

    subjects: Sequence[str | int] | Sequence[Sequence[str | int]] = ()
    init_step: float = 1e-4
    scale_range: tuple[float, float] = (1.0, 0.5)
    thresholds: Mapping[int | float, float] = field(
        default_factory=lambda: {0.0: 0.95, 0.2: 0.5, 0.4: 0.2}
    )
    threshold: float = 0.2
    max_iterations: int = 10
    flow: str = "soft"
    temperature: float = TEMPERATURE
    resolution: int | tuple[int, int] | None = None
    steps: Schedule = field(default=until(0.5), kw_only=True)
    where: Where = field(default=Where("cross|temporal"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", check_subjects(self.name, self.subjects))
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(self.name, name, getattr(self, name)))
        check_number(self.name, "init_step", self.init_step, at_least=0)
        check_number(self.name, "threshold", self.threshold, at_least=0, at_most=1)
        check_number(self.name, "max_iterations", self.max_iterations, at_least=1)
        check_number(self.name, "temperature", self.temperature, at_least=1e-6)
        if self.flow not in FORMS:
            raise SettingError(f"{self.name}: flow={self.flow!r}; {nearest(str(self.flow), FORMS)}")

    def needs(self) -> Needs:
        return Needs(reads=(Read("probs", grad=True),), layout=True, prompts=True)

    def strength_at(self, index: int, total: int | None) -> float:
        most = max(len(one) for one in lists_of(self.subjects))
        if self.init_step == 0 or most < FEWEST_SUBJECTS:
            return 0.0
        return self.steps.strength(index, total)

    def select(self, sites: Sequence[Site], model: str) -> Where:
        if not _places_of(sites):
            raise UnsupportedModelError(
                f"{self.name} joins cross-attention with the temporal attention of motion modules "
                f"behind it, which this model has not; it supports {self.families}"
            )
        if not _places_of(self.where.sites(sites)):
            raise NoSiteError(
                f"{self.name}: where={str(self.where)!r} selects no cross-attention together with "
                "the temporal attention behind it; select both kinds, such as 'cross|temporal'"
            )
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        sizes = {site: layout.grid[1:] for site in sites if (layout := layouts[site]) is not None}
        places = [place for place in _places_of(sites) if place.cross[0] in sizes]
        wanted = self.resolution or _usual_grid(places, sizes)
        return tuple(
            site
            for place in places
            if sizes[place.cross[0]] == wanted
            for site in (*place.cross, *place.temporal)
        )

    def begin(self, run: RunStart) -> _State:
        layout = run.layouts[run.sites[0].path]
        if layout is None:
            raise SettingError(f"{self.name}: the layout of {run.sites[0].path} is unknown")
        lists = spread(self.name, "subjects", lists_of(self.subjects), run.items)
        found = [
            locate(self.name, lists[i], run.prompts[i] if run.prompts else None)
            for i in range(run.items)
        ]
        return _State(
            subjects=[positions for positions, _ in found],
            kept=[_words_of(tokens) for _, tokens in found],
            places=_places_of(run.sites),
            grid=layout.grid,
            sizes=step_sizes(run.total or 1, self.init_step, self.scale_range),
        )

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        state: _State = call.state
        frames, height, width = state.grid
        # Kept as (items, positions, frames, tokens) and (items, positions, frames, frames).
        mean = of_heads(value, call.heads).mean(dim=1)
        if call.site.kind == "cross":
            mean = mean[..., : state.end].unflatten(0, (-1, frames)).transpose(1, 2)
        elif mean.shape[1:] == (frames, frames):
            mean = mean.unflatten(0, (-1, height * width))
        else:
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} attends from {mean.shape[1]} frames to "
                f"{mean.shape[2]}, not among all {frames}; switch windows over frames off"
            )
        state.maps[call.site.path] = mean

    def loss(self, state: _State, step: Step) -> Tensor:
        flows = [
            word_influence(
                state.maps[site.path],
                [state.maps[behind.path] for behind in place.temporal],
                self.flow,
                self.temperature,
            )
            for place in state.places
            for site in place.cross
        ]
        state.maps.clear()
        mean = torch.stack(flows).mean(dim=0).transpose(1, 2)  # (items, F, P, T)
        return weakest_losses(mean.unflatten(2, state.grid[1:]), state.subjects, state.kept)

    def move(self, state: _State, step: Step, evaluation: int, loss: Tensor) -> Move:
        repeated = value_at(self.thresholds, step.index, step.total)
        target = self.threshold if repeated is None else repeated
        most = 1 if repeated is None else self.max_iterations
        if evaluation == 0:
            state.adam = Adam()
        moving = (loss >= target) & (loss != 0)
        size = float(state.sizes[step.index]) * self.steps.strength(step.index, step.total)
        return Move(
            moving.float(),
            again=evaluation + 1 < most and bool(moving.any()),
            turn=partial(state.adam.step, evaluation + 1, size),
        )


def _places_of(sites: Sequence[Site]) -> list[_Place]:
    """Places of a U-Net that have both kinds of attention, in execution order."""
    found: dict[Any, dict[str, list[Site]]] = {}
    for site in sorted(sites, key=lambda site: site.index):
        place = _PLACE.match(site.path)
        if place is not None:
            kinds = found.setdefault((site.denoiser, *place.groups()), {})
            kinds.setdefault(site.kind, []).append(site)
    return [
        _Place(tuple(kinds["cross"]), tuple(kinds["temporal"]))
        for kinds in found.values()
        if "cross" in kinds and "temporal" in kinds
    ]


def _usual_grid(
    places: Sequence[_Place], sizes: Mapping[Site, tuple[int, int]]
) -> tuple[int, int] | None:
    """The grid with a quarter of the latents' side, or the nearest one."""
    first = [place.cross[0] for place in places]
    site = min(first, key=lambda site: abs(site.level - USUAL_LEVEL), default=None)
    return None if site is None else sizes[site]


def _words_of(tokens: PromptTokens | None) -> tuple[int, int | None]:
    """The token columns that compete: those of the prompt's words."""
    if tokens is None or not tokens.word_positions:
        return 1, None
    return tokens.word_positions[0], tokens.word_positions[-1] + 1
