"""DiTFlow: a new clip moves as a given one, by the attention between its frames."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Move, Needs, Read, RunStart, Step
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import check_features
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.ops.adam import Adam
from attnctl.ops.dit_flow import (
    TEMPERATURE,
    hard_motion_flow,
    learning_rate,
    motion_loss,
    soft_motion_flow,
)
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number, two_numbers
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole

MIDDLE = "self|joint"  # of these the middle layer is guided
FIRST = "self,layers=0|joint,layers=0"  # takes over keys and values
ADAM_EPS = 1e-8


@dataclass(slots=True)
class _State:
    """One run: who is guided and who takes over, losses by site and item, the optimiser."""

    guided: frozenset[str]
    injected: frozenset[str]
    references: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    losses: dict[str, dict[int, Tensor]] = field(default_factory=dict[str, dict[int, Tensor]])
    adam: Adam = field(default_factory=Adam)


@register("dit-flow")
@dataclass(frozen=True)
class DiTFlow(Technique):
    """Transfer the motion of a given clip: a new one attends from frame to frame as that one does.

    Where each cell of a frame looks in each other frame is a motion flow. That of the given clip is
    read in an earlier run; in early steps the latents are moved by Adam until the flow of the new
    clip is like it, and the first layer takes over keys and values of the given clip. What is in
    the clip follows the prompt alone.

    Attributes:
        features: Of the given clip, recorded in its inversion with ``AttentionRecorder(store,
            what=("query", "key", "value"))`` at the guided layer and the first one; the flow is
            that at the cleanest timestep. None: there is nothing to take over.
        motion: The flow itself in place of that of ``features``, as
            ``attnctl.ops.dit_flow.hard_motion_flow`` gives it: ``(F, F, rows * columns, 2)``, in
            cells. Without either the technique is off.
        inject: The first layer takes over keys and values of ``features``, at the same timesteps.
        iterations: Moves at each step, from 0; 0 takes over keys and values alone.
        learning_rates: How far each move shifts each element of the latents, about, at the first
            guided step and behind the last one, in latent units. In bfloat16 moves below about 0.4
            percent of an element are rounded away.
        motion_temp: Factor on the logits of the new clip's flow, from 0.
        steps: The default is the first fifth, as the authors have it.
        where: Layers whose attention is compared; several count equally. By default the middle
            one; the authors take ``layers=15`` of CogVideoX-2B and ``layers=20`` of 5B.
    """

    reference: ClassVar[str] = "Pondaven et al., CVPR 2025, arXiv 2412.07776"
    families: ClassVar[str] = "CogVideoX, Wan"
    claims: ClassVar[frozenset[str]] = frozenset({"optimiser"})

    features: FeatureStore | None = field(default=None, compare=False)
    motion: Tensor | None = field(default=None, compare=False, repr=False)
    inject: bool = True
    iterations: int = 5
    learning_rates: tuple[float, float] = (0.002, 0.001)
    motion_temp: float = TEMPERATURE
    steps: Schedule = field(default=until(0.2), kw_only=True)
    where: Where = field(default=Where(MIDDLE), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.motion is not None:
            _check_motion(self.name, self.motion)
        check_number(self.name, "iterations", self.iterations, at_least=0)
        if not is_whole(self.iterations):
            raise SettingError(
                f"{self.name}: iterations={self.iterations!r} must be a whole number"
            )
        rates = two_numbers(self.name, "learning_rates", self.learning_rates)
        object.__setattr__(self, "learning_rates", rates)
        check_number(self.name, "motion_temp", self.motion_temp, at_least=0)

    def settings(self) -> dict[str, Any]:
        """Plain values; of features or a flow a description, which cannot build it again."""
        features = None if self.features is None else repr(self.features)
        motion = None if self.motion is None else f"flow of {len(self.motion)} frames"
        return super().settings() | {"features": features, "motion": motion}

    @property
    def _guides(self) -> bool:
        has_motion = self.features is not None or self.motion is not None
        return has_motion and bool(self.iterations) and any(self.learning_rates)

    @property
    def _injects(self) -> bool:
        return self.inject and self.features is not None

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self._guides or self._injects else 0.0

    def overrides(self, method: str) -> bool:
        """Only the phases that its settings ask for."""
        asked = {"loss": self._guides, "edit_qkv": self._injects}
        return asked[method] if method in asked else super().overrides(method)

    def all_claims(self) -> frozenset[str]:
        return super().all_claims() | (frozenset({"kv"}) if self._injects else frozenset())

    def needs(self) -> Needs:
        return Needs(reads=(Read("qk", grad=True, raw=True),), layout=True)

    def select(self, sites: Sequence[Site], model: str) -> Where:
        guided = self.where.sites(sites)
        does = "compares attention between all image tokens of a clip"
        check_kinds(self.name, guided, ("self", "joint"), does, MIDDLE)
        if self.where.text == MIDDLE:
            guided = _middle_of(guided)
        text = self.where.text
        if self.where.text == MIDDLE:
            text = "|".join(f"path={site.path},denoiser={site.denoiser}" for site in guided)
        return Where(f"{text}|{FIRST}" if self._injects else text)

    def begin(self, run: RunStart) -> _State:
        first = {site.path for site in run.sites if site.layer == 0}
        if self.where.text == MIDDLE:
            guided = {site.path for site in run.sites if site.layer or not self._injects} or first
        else:
            guided = {s.path for s in run.sites if self._is_selected(s, run.layouts[s.path])}
        injected = first if self._injects else set[str]()
        for path in (*guided, *injected):
            _check_layout(self.name, path, run.layouts[path], self.motion)
        if self.features is not None:
            check_features(self.name, self.features, run, injected | self._recorded(guided))
        return _State(frozenset(guided), frozenset(injected))

    def edit_qkv(self, call: AttentionCall) -> None:
        if self.features is None or call.site.path not in call.state.injected:
            return
        timestep, path = call.step.timestep, call.site.path
        call.key, call.value = (
            _taken_over(call, own, self.features.get(timestep, path, what, like=own))
            for what, own in (("key", call.key), ("value", call.value))
        )

    def read(self, call: AttentionCall, what: Read, value: Any) -> None:
        state: _State = call.state
        if call.layout is None or call.site.path not in state.guided:
            return
        layout, path = call.layout, call.site.path
        if path not in state.references:
            state.references[path] = self._reference(call, layout).to(value[0].device)
        references = state.references[path]
        items = [r.item for r in call.rows if r.branch == what.branch and r.kind == "main"]
        for item, query, key in zip(items, *(self._tokens(call, x) for x in value), strict=True):
            flow = soft_motion_flow(query, key, layout.grid, call.scale, self.motion_temp)
            loss = motion_loss(references[item % len(references)], flow)
            state.losses.setdefault(path, {})[item] = loss

    def loss(self, state: _State, step: Step) -> Tensor:
        by_site = [
            torch.stack([of_items[item] for item in sorted(of_items)])
            for of_items in state.losses.values()
        ]
        state.losses = {}
        return torch.stack(by_site).mean(dim=0)

    def move(self, state: _State, step: Step, evaluation: int, loss: Tensor) -> Move:
        if evaluation == 0:
            state.adam = Adam(ADAM_EPS)
        moving = loss != 0
        return Move(
            moving.float(),
            again=evaluation + 1 < self.iterations and bool(moving.any()),
            turn=partial(state.adam.step, evaluation + 1, self._rate(step)),
        )

    def _rate(self, step: Step) -> float:
        active = self.steps.active_steps(step.total or 1)
        place = active.index(step.index) if step.index in active else 0
        rate = learning_rate(place, max(1, len(active)), self.learning_rates)
        return rate * self.steps.strength(step.index, step.total)

    def _is_selected(self, site: Site, layout: Layout | None) -> bool:
        grid = (0, 0) if layout is None else layout.grid[1:]
        return self.where.allows_grid(site, *grid)

    def _recorded(self, guided: set[str]) -> set[str]:
        """Sites whose queries and keys are taken from the features."""
        return guided if self.motion is None and self._guides else set()

    def _reference(self, call: AttentionCall, layout: Layout) -> Tensor:
        """The given clip's flow, ``(items, F, F, n, 2)``."""
        if self.motion is not None:
            return self.motion[None]
        assert self.features is not None  # without either it is off
        clean, path = self.features.timesteps[-1], call.site.path
        query, key = (
            self._tokens(call, self.features.get(clean, path, what, like=call.query))
            for what in ("query", "key")
        )
        pairs = zip(query, key, strict=True)
        return torch.stack([hard_motion_flow(*pair, layout.grid) for pair in pairs])

    def _tokens(self, call: AttentionCall, tensor: Tensor) -> Tensor:
        """Image tokens of the chosen heads, ``(rows, H, F * n, D)``."""
        assert call.layout is not None  # looked at before
        heads = self.where.heads(call.site)
        image = tensor[:, :, call.layout.image]
        return image if not heads else image[:, list(heads)]


def _taken_over(call: AttentionCall, own: Tensor, kept: Tensor) -> Tensor:
    """Image tokens of the given clip in place of a run's own; text stays."""
    assert call.layout is not None  # looked at when the run began
    start, stop = call.layout.image.start, call.layout.image.stop
    rows = [row.item % len(kept) for row in call.rows]
    image = own[:, :, start:stop].lerp(kept[rows][:, :, start:stop], call.strength)
    return torch.cat([own[:, :, :start], image, own[:, :, stop:]], dim=2)


def _middle_of(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The middle one of the selected sites of each denoiser."""
    by_denoiser: dict[str, list[Site]] = {}
    for site in sites:
        by_denoiser.setdefault(site.denoiser, []).append(site)
    return tuple(of_one[len(of_one) // 2] for of_one in by_denoiser.values())


def _check_motion(technique: str, motion: Any) -> None:
    is_flow = isinstance(motion, Tensor) and motion.dim() == 4 and motion.shape[-1] == 2
    if not is_flow or motion.shape[0] != motion.shape[1] or not bool(motion.isfinite().all()):
        shape = f" of shape {tuple(motion.shape)}" if isinstance(motion, Tensor) else ""
        raise SettingError(
            f"{technique}: motion= must be a finite tensor (frames, frames, rows * columns, 2), as"
            " attnctl.ops.dit_flow.hard_motion_flow gives it; got "
            f"{type(motion).__name__}{shape}"
        )


def _check_layout(technique: str, path: str, layout: Layout | None, motion: Tensor | None) -> None:
    """Refuse sites where frames do not attend to each other, and a flow of another size."""
    if layout is None or not layout.is_video or layout.fold != "rows":
        raise UnsupportedModelError(
            f"{technique} needs full attention over all frames of a clip, which {path} has not; "
            "it supports CogVideoX, Wan and models like them"
        )
    frames, height, width = layout.grid
    shape = (frames, frames, height * width, 2)
    if motion is not None and tuple(motion.shape) != shape:
        raise SettingError(
            f"{technique}: motion= has shape {tuple(motion.shape)}, but this run has {frames} "
            f"frames of {height} x {width} cells, which is {shape}; take the flow of a clip of the "
            "same size"
        )
