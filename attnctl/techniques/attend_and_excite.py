"""Attend-and-Excite: no named subject is left out of the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Move, Needs, Read, RunStart, Step
from attnctl.chosen_heads import of_heads
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.named_words import spread
from attnctl.ops.attend_and_excite import neglect_losses, step_sizes
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number, grid_or_none, step_values, two_numbers, value_at
from attnctl.sites import Site
from attnctl.subjects import check_subjects, lists_of, locate
from attnctl.technique import Technique
from attnctl.tokens import PromptTokens
from attnctl.where import Where

FINEST_DEFAULT_SIDE = 16  # the reference's attn_res

DONE, REFINING, LAST = 0, 1, 2

_CHECKS = {"thresholds": step_values, "resolution": grid_or_none, "scale_range": two_numbers}


@dataclass(slots=True)
class _State:
    """One run: token positions of each item's subjects, and what the forward read."""

    subjects: list[list[int]]
    first: int
    last: int | list[int | None]
    is_joint: bool
    sizes: Tensor
    grid: tuple[int, int]
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    heads: dict[str, int] = field(default_factory=dict[str, int])
    phase: Tensor = field(default_factory=lambda: torch.zeros(0))


@register("attend-and-excite")
@dataclass(frozen=True)
class AttendAndExcite(Technique):
    """Move early latents so that every named subject gets its place in the attention maps.

    At each step the latents take a step against the gradient of the most neglected subject's
    loss: one minus the strongest pixel of its smoothed cross-attention map. At the steps of
    ``thresholds`` this repeats until every subject's map has reached the threshold. Joint
    attention (MM-DiT) is experimental: no reference numbers exist for it.

    Attributes:
        subjects: Words of the prompt or token positions (BOS is 0); for several prompts a list
            for each. A word of several tokens counts by its last one, at its first occurrence.
        thresholds: Step (or fraction of the run) to the value that each subject's map must
            reach there, in [0, 1].
        scale_factor: Size of the gradient step, in latent units per unit of gradient; 0 is off.
        scale_range: Factors under the square root at the first and the last step.
        max_refinement_steps: Most gradient steps at a threshold.
        resolution: Height and width (or one side) of the maps in cells. By default the smallest
            grid with a quarter of the latents' side and at least 16 cells.
        smoothing: Blur the maps before taking their maximum.
        sigma: Width of the blur in cells.
        kernel_size: Side of the blur in cells, odd.
        normalize_eot: Keep only the prompt's own words in the softmax over tokens, as the
            reference does for Stable Diffusion 2.
    """

    reference: ClassVar[str] = "Chefer et al., SIGGRAPH 2023, arXiv 2301.13826"
    families: ClassVar[str] = "UNets and PixArt; SD3 and FLUX experimental"

    subjects: Sequence[str | int] | Sequence[Sequence[str | int]] = ()
    steps: Schedule = field(default=until(25), kw_only=True)
    where: Where = field(default=Where("cross|joint"), kw_only=True)
    thresholds: Mapping[int | float, float] = field(
        default_factory=lambda: {0: 0.05, 10: 0.5, 20: 0.8}
    )
    scale_factor: float = 20.0
    scale_range: tuple[float, float] = (1.0, 0.5)
    max_refinement_steps: int = 20
    resolution: int | tuple[int, int] | None = None
    smoothing: bool = True
    sigma: float = 0.5
    kernel_size: int = 3
    normalize_eot: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", check_subjects(self.name, self.subjects))
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(self.name, name, getattr(self, name)))
        check_number(self.name, "scale_factor", self.scale_factor, at_least=0)
        check_number(self.name, "sigma", self.sigma, at_least=1e-6)
        check_number(self.name, "max_refinement_steps", self.max_refinement_steps, at_least=1)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise SettingError(f"{self.name}: kernel_size={self.kernel_size!r} must be odd")

    def needs(self) -> Needs:
        return Needs(reads=(Read("columns", grad=True),), layout=True, prompts=True)

    def strength_at(self, index: int, total: int | None) -> float:
        if self.scale_factor == 0 or not any(lists_of(self.subjects)):
            return 0.0
        strength = self.steps.strength(index, total)
        return strength or float(value_at(self.thresholds, index, total) is not None)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        grids = {site: layout.grid[1:] for site in sites if (layout := layouts[site]) is not None}
        wanted = self.resolution or _default_grid(grids)
        return tuple(site for site in sites if grids.get(site) == wanted)

    def begin(self, run: RunStart) -> _State:
        lists = spread(self.name, "subjects", lists_of(self.subjects), run.items)
        is_joint = run.sites[0].kind == "joint"
        found = [
            locate(self.name, lists[i], run.prompts[i] if run.prompts else None)
            for i in range(run.items)
        ]
        prompts = [tokens for _, tokens in found]
        layout = run.layouts[run.sites[0].path]
        if layout is None:
            raise SettingError(f"{self.name}: the layout of {run.sites[0].path} is unknown")
        if layout.grid[0] > 1:
            raise UnsupportedModelError(
                f"{self.name} works on pictures, not on {layout.grid[0]} frames; it supports "
                f"{self.families}"
            )
        return _State(
            subjects=[positions for positions, _ in found],
            first=min((p.word_positions[0] for p in prompts if p and p.word_positions), default=1),
            last=_last_columns(prompts, only_words=self.normalize_eot or is_joint),
            is_joint=is_joint,
            sizes=step_sizes(run.total or 1, self.scale_factor, self.scale_range),
            grid=layout.size,
        )

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        chosen = of_heads(value, call.heads)
        call.state.sums[call.site.path] = chosen.sum(dim=1)  # (items, Q, T)
        call.state.heads[call.site.path] = chosen.shape[1]

    def loss(self, state: _State, step: Step) -> Tensor:
        total = torch.stack(list(state.sums.values())).sum(dim=0)
        maps = (total / sum(state.heads.values())).unflatten(1, state.grid)  # (items, h, w, T)
        state.sums.clear()
        return neglect_losses(
            maps,
            state.subjects,
            first=state.first,
            last=state.last,
            smoothing=self.smoothing,
            sigma=self.sigma,
            kernel_size=self.kernel_size,
            renormalise=state.is_joint,
        )

    def move(self, state: _State, step: Step, evaluation: int, loss: Tensor) -> Move:
        strength = self.steps.strength(step.index, step.total)
        size = float(state.sizes[step.index]) * (strength or 1.0)
        threshold = value_at(self.thresholds, step.index, step.total)
        if threshold is None:
            return Move(size * (loss != 0))
        target = max(0.0, 1.0 - threshold)
        if evaluation == 0:
            state.phase = torch.where(loss > target, REFINING, LAST)
        moving = (state.phase == REFINING) | ((state.phase == LAST) & (strength != 0))
        has_more = (loss > target) & (evaluation + 1 < self.max_refinement_steps)
        is_refining = state.phase == REFINING
        is_stuck = is_refining & (loss > target) & ~has_more
        state.phase = torch.where(is_refining, torch.where(has_more, REFINING, LAST), DONE)
        waits = (state.phase == REFINING) | ((state.phase == LAST) & (strength != 0))
        note = _stuck_note(self, step, is_stuck, loss, target)
        return Move(size * (moving & (loss != 0)), again=bool(waits.any()), note=note)


def _last_columns(
    prompts: Sequence[PromptTokens | None], *, only_words: bool
) -> int | list[int | None]:
    """End of the token columns that compete; padding competes too in the reference for CLIP."""
    is_clip = all(p is None or (p.word_positions[:1] or (1,))[0] == 1 for p in prompts)
    if is_clip and not only_words:
        return -1
    return [
        p.word_positions[-1] + 1 if p is not None and p.word_positions else None for p in prompts
    ]


def _default_grid(grids: Mapping[Site, tuple[int, int]]) -> tuple[int, int] | None:
    """The smallest grid of at least a quarter of the latents' side and at least 16 cells."""
    if not grids:
        return None
    latents = max(min(grid) * 2**site.level for site, grid in grids.items())
    side = max(FINEST_DEFAULT_SIDE, -(-latents // 4))
    fitting = [grid for grid in grids.values() if min(grid) >= side]
    return min(fitting) if fitting else max(grids.values())


def _stuck_note(
    technique: AttendAndExcite, step: Step, is_stuck: Tensor, loss: Tensor, target: float
) -> str:
    if not bool(is_stuck.any()):
        return ""
    return (
        f"step {step.index}: {technique.name} stopped after {technique.max_refinement_steps} "
        f"refinements with loss {float(loss[is_stuck].max()):.3f}, above {target:.3f}"
    )
