"""GradSAM: a prompted subject in a given scene, with a mask from attention and its gradient."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, LatentsCall, Layout, Move, Needs, Read, RunStart, Step
from attnctl.chosen_heads import on_heads
from attnctl.editing.trajectories import NoisedTrajectory
from attnctl.errors import FeatureError, SettingError, UnsupportedModelError
from attnctl.kernels.masks import repeat_heads
from attnctl.named_words import find_tokens, spread
from attnctl.ops.grad_sam import (
    blend_region,
    column_gradients,
    importance,
    joined_scores,
    subject_region,
)
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number, step_of, steps_or_fraction
from attnctl.sites import Site, check_kinds
from attnctl.subjects import check_subjects, lists_of
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a site gave in the gradient pass, for the conditional rows: output and values."""

    out: Tensor
    at: Tensor
    value: Tensor
    layout: Layout


@dataclass(slots=True)
class _State:
    """Subjects of each item, what the gradient pass gave, and the region that is kept."""

    positions: list[int]
    is_subject: Tensor
    note: Callable[[str], None]
    columns: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    seen: dict[str, _Seen] = field(default_factory=dict[str, _Seen])
    made: tuple[Tensor, Tensor] | None = None
    region: Tensor | None = None

    def forget(self) -> None:
        """Let go of the graph."""
        self.columns, self.seen, self.made = {}, {}, None


@register("grad-sam")
@dataclass(frozen=True)
class GradSAM(Technique):
    """Put the subject of a prompt into a given scene, without a mask that somebody draws.

    At ``mask_steps`` a forward with gradients tells where the subject's words matter: attention to
    them, times the absolute gradient of the estimated clean latents with respect to it. Behind
    each step from the first of these on, latents outside of that region are replaced by those of
    the scene with noise. A subject whose scores tell nothing replaces nothing. The author has
    published no code: the scalar whose gradient is taken, and all numbers, are reconstructed. Each
    mask step costs a forward and a backward of the conditional rows.

    Attributes:
        subjects: Words of the prompt or token positions (BOS is 0); for several prompts a list for
            each. All tokens of a word count, at its first occurrence.
        trajectory: The scene at every noise level, from ``attnctl.inversion.noised_trajectory``;
            one item, or one for each. None: it does nothing.
        mask_steps: Steps (int) or fractions of the run (float, or "20%") at which the region is
            found anew; empty: it does nothing.
        threshold: Least score of the region, in [0, 1], where 1 is the largest of a picture.
        sigma: Width of the blur of scores in cells of the latents, from 0.
        dilations: How many cells the region grows in every direction, from 0.
        relu: Count places alone where more attention raises the scalar, as Grad-SAM itself does.
        steps: Latents are replaced behind these steps, from the first mask on.
        where: Layers whose attention to the words counts.
    """

    reference: ClassVar[str] = "Pathania, arXiv 2408.16232; Barkan et al., CIKM 2021; reconstructed"
    families: ClassVar[str] = "UNets and PixArt; SD3 experimental"
    claims: ClassVar[frozenset[str]] = frozenset({"overwrite"})
    no_settings: ClassVar[frozenset[str]] = frozenset({"trajectory"})

    subjects: Sequence[str | int] | Sequence[Sequence[str | int]] = ()
    trajectory: NoisedTrajectory | None = field(default=None, repr=False, compare=False)
    mask_steps: Sequence[int | float | str] = (0.2, 0.4, 0.6)
    threshold: float = 0.5
    sigma: float = 1.0
    dilations: int = 2
    relu: bool = False
    steps: Schedule = field(default=until(0.8), kw_only=True)
    where: Where = field(default=Where("cross|joint"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", check_subjects(self.name, self.subjects))
        given: Any = self.mask_steps
        listed = given if isinstance(given, list | tuple) else [given]
        marks = tuple(steps_or_fraction(self.name, "mask_steps", one) for one in listed)
        object.__setattr__(self, "mask_steps", marks)
        check_number(self.name, "threshold", self.threshold, at_least=0, at_most=1)
        check_number(self.name, "sigma", self.sigma, at_least=0)
        if not is_whole(self.dilations) or self.dilations < 0:
            raise SettingError(
                f"{self.name}: dilations={self.dilations!r} must be a whole number from 0"
            )
        if self.trajectory is not None and not isinstance(self.trajectory, NoisedTrajectory):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(
                f"{self.name}: trajectory={self.trajectory!r} must come from "
                "attnctl.inversion.noised_trajectory(pipe, picture, steps=...)"
            )

    def needs(self) -> Needs:
        reads = (Read("columns", grad=True),)
        return Needs(reads=reads, layout=True, prompts=True, gradient_to="end")

    def strength_at(self, index: int, total: int | None) -> float:
        is_on = self.trajectory is not None and bool(self.mask_steps)
        if not is_on or not any(lists_of(self.subjects)):
            return 0.0
        return self.steps.strength(index, total)

    def has_loss_at(self, index: int, total: int | None) -> bool:
        marks: Any = self.mask_steps
        return index in [step_of(mark, total) for mark in marks]

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where image tokens attend to text"
        check_kinds(self.name, sites, ("cross", "joint"), does, "cross|joint")
        for layout in layouts.values():
            if layout is not None and layout.grid[0] > 1:
                raise UnsupportedModelError(
                    f"{self.name} works on pictures, not on {layout.grid[0]} frames; it supports "
                    f"{self.families}"
                )
        return sites

    def begin(self, run: RunStart) -> _State:
        self._check_trajectory(run)
        lists = spread(self.name, "subjects", lists_of(self.subjects), run.items)
        texts = [x.text for x in run.layouts.values() if x is not None and x.text is not None]
        length = min((text.stop - text.start for text in texts), default=None)
        found: list[set[int]] = []
        for item, words in enumerate(lists):
            prompt = None if run.prompts is None else run.prompts[item][0]
            tokens = find_tokens(self.name, "subjects", words, prompt, length)
            found.append({p for positions in tokens for p in positions})
        positions = sorted(set[int]().union(*found))
        is_subject = torch.tensor([[float(p in own) for p in positions] for own in found])
        return _State(positions, is_subject.view(run.items, -1), run.note)

    def _check_trajectory(self, run: RunStart) -> None:
        """Refuse a trajectory of another sampler, size or number of items."""
        known = self.trajectory
        if known is None:
            return
        now = run.fingerprint()
        if now.scheduler != known.scheduler:
            raise FeatureError(
                f"{self.name}: the trajectory has the noise levels of {known.scheduler}, the run "
                f"those of {now.scheduler}; run with pipe.scheduler = "
                "attnctl.inversion.sampler_of(pipe)"
            )
        if tuple(known.clean.shape[1:]) != now.latents or known.items not in (1, run.items):
            raise FeatureError(
                f"{self.name}: the trajectory has {known.items} items of latents "
                f"{tuple(known.clean.shape[1:])}, the run {run.items} of {now.latents}; make it "
                "from one picture, or one for each, of the size of the run"
            )

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        state: _State = call.state
        state.columns[call.site.path] = value.detach()[..., state.positions]

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        state: _State = call.state
        layout = call.layout
        is_due = self.has_loss_at(call.step.index, call.step.total)
        if call.pass_.kind != "gradient" or not is_due or layout is None or layout.text is None:
            return out
        at = call.pick(branch="cond", kind="main")
        tokens = [layout.text.start + position for position in state.positions]
        value = repeat_heads(call.value.detach(), out.shape[1])[at][:, :, tokens]
        value = on_heads(value, 0.0, call.heads, out.shape[1])  # the other heads do not count
        state.seen[call.site.path] = _Seen(out, at, value, layout)
        return out

    def read_prediction(self, state: _State, prediction: Tensor, latents: Tensor) -> None:
        state.made = (prediction, latents)

    def loss(self, state: _State, step: Step) -> Tensor:
        """Find the region; the loss itself is 0, so that no latent is moved."""
        assert self.trajectory is not None  # else its strength is 0
        assert state.made is not None  # handed over before
        prediction, latents = state.made
        clean = self.trajectory.estimate(step.timestep, latents, prediction.float())
        seen = list(state.seen.items())
        outputs = [one.out for _, one in seen]
        gradients = torch.autograd.grad(
            clean.abs().sum(), outputs, retain_graph=True, materialize_grads=True
        )
        layers = [
            self._scores(state, state.columns[path], one, gradient)
            for (path, one), gradient in zip(seen, gradients, strict=True)
        ]
        size = (int(latents.shape[-2]), int(latents.shape[-1]))
        state.region = subject_region(
            joined_scores(layers, size), self.sigma, self.threshold, self.dilations
        )
        shares = [f"{share:.0%}" for share in state.region.float().mean((1, 2, 3)).tolist()]
        state.note(f"step {step.index}: {self.name} keeps {', '.join(shares)} of the picture")
        state.forget()
        return torch.zeros(len(latents), device=latents.device)

    def _scores(self, state: _State, columns: Tensor, seen: _Seen, gradient: Tensor) -> Tensor:
        """Scores of one layer, ``(items, h, w)``."""
        of_output = gradient[seen.at][:, :, seen.layout.image]
        gradients = column_gradients(of_output, seen.value)
        scores = importance(columns, gradients, state.is_subject.to(columns), relu=self.relu)
        return scores.unflatten(1, seen.layout.grid[1:])

    def move(self, state: _State, step: Step, evaluation: int, loss: Tensor) -> Move:
        return Move(0.0)

    def after_step(self, call: LatentsCall) -> Tensor | None:
        state: _State = call.state
        state.forget()
        if state.region is None or self.trajectory is None:
            return None
        given = self.trajectory.after(call.step.timestep).to(call.latents)
        return blend_region(call.latents, given, state.region, call.strength)
