"""MotionFlow: a new subject moves as that of a given clip, by the masks of its attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Move, Needs, Read, RunStart, Step
from attnctl.chosen_heads import of_heads
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import check_features
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.named_words import Words, find_tokens, spread
from attnctl.ops.attend_and_excite import step_sizes
from attnctl.ops.motion_flow import mask_losses, merge_maps, motion_masks, resized_masks
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number, two_numbers
from attnctl.sites import Site, check_kinds
from attnctl.subjects import check_subjects, lists_of
from attnctl.technique import Technique
from attnctl.techniques.recorders import WORDS
from attnctl.tokens import PromptTokens
from attnctl.where import Where
from attnctl.windows import is_whole

CROSS = "cross"  # of these, U-Nets leave out the finest


@dataclass(slots=True)
class _State:
    """One run: token positions of each item's subject, grids, masks of a step, maps by site."""

    positions: list[list[int]]
    grids: dict[str, tuple[int, int, int]]
    sizes: Tensor
    masks: tuple[int, Tensor] | None = None
    maps: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the finest site."""
        return max(grid[1:] for grid in self.grids.values())


@register("motion-flow")
@dataclass(frozen=True)
class MotionFlow(Technique):
    """Transfer the motion of a given clip's subject: a new one is drawn where that one was.

    Attention to the words of the given clip's subject, read while it is inverted, gives a mask for
    each frame and step. In early steps the latents take steps against the gradient of the attention
    to the new subject's words that lies outside of the masks. Looks, and all that is outside,
    follow the prompt. The authors' code was not available; thresholds, loss and steps are
    reconstructed.

    Attributes:
        subjects: Words of the prompt, or token positions (BOS is 0), that name the new subject
            together, at their first occurrence; for several prompts a list for each.
        features: Attention to the words of the given clip's subject, recorded in its inversion with
            ``WordRecorder(store, words)`` at the same layers and with the same timesteps.
        masks: Masks of the subject in place of those from ``features``, the same at all steps:
            ``(frames, height, width)``, booleans or numbers in [0, 1], with the frames of the
            latents and any height and width. Without either the technique is off.
        threshold: Cells of a map, scaled to [0, 1] in each frame, are inside above it, in [0, 1];
            None: Otsu's threshold of each frame.
        smoothing: Blur those maps by one cell first.
        scale_factor: Size of the gradient step, in latent units per unit of gradient, from 0; 0 is
            off.
        scale_range: Factors under the square root at the first and the last step.
        iterations: Gradient steps at each step, from 1.
        beta: Weight of the cross-entropy of map and mask beside the part that lies outside, from 0:
            it asks the subject to fill its mask, too.
        where: Cross-attention. By default all but the finest layers of a U-Net, and all layers of
            other models.
    """

    reference: ClassVar[str] = "Meral et al., arXiv 2412.05275 (reconstructed)"
    families: ClassVar[str] = "UNetMotion (AnimateDiff), Wan"

    subjects: Sequence[str | int] | Sequence[Sequence[str | int]] = ()
    features: FeatureStore | None = field(default=None, compare=False)
    masks: Tensor | None = field(default=None, compare=False, repr=False)
    threshold: float | None = None
    smoothing: bool = True
    scale_factor: float = 20.0
    scale_range: tuple[float, float] = (1.0, 0.5)
    iterations: int = 3
    beta: float = 0.0
    steps: Schedule = field(default=until(0.4), kw_only=True)
    where: Where = field(default=Where(CROSS), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "subjects", check_subjects(self.name, self.subjects))
        if self.masks is not None:
            _check_masks(self.name, self.masks)
        if self.threshold is not None:
            check_number(self.name, "threshold", self.threshold, at_least=0, at_most=1)
        check_number(self.name, "scale_factor", self.scale_factor, at_least=0)
        factors = two_numbers(self.name, "scale_range", self.scale_range)
        object.__setattr__(self, "scale_range", factors)
        check_number(self.name, "iterations", self.iterations, at_least=1)
        if not is_whole(self.iterations):
            raise SettingError(
                f"{self.name}: iterations={self.iterations!r} must be a whole number"
            )
        check_number(self.name, "beta", self.beta, at_least=0)

    def settings(self) -> dict[str, Any]:
        """Plain values; of features or masks a description, which cannot build it again."""
        features = None if self.features is None else repr(self.features)
        masks = None if self.masks is None else f"masks of {len(self.masks)} frames"
        return super().settings() | {"features": features, "masks": masks}

    def strength_at(self, index: int, total: int | None) -> float:
        has_masks = self.features is not None or self.masks is not None
        is_on = has_masks and bool(self.scale_factor) and any(lists_of(self.subjects))
        return self.steps.strength(index, total) if is_on else 0.0

    def needs(self) -> Needs:
        return Needs(reads=(Read("columns", grad=True),), layout=True, prompts=True)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "reads attention to the words of the prompt"
        check_kinds(self.name, sites, (CROSS,), does, CROSS)
        if self.where.text != CROSS:
            return sites
        return tuple(site for site in sites if site.level) or sites

    def begin(self, run: RunStart) -> _State:
        grids = {path: self._grid_of(path, run.layouts[path]) for path in run.layouts}
        lists = spread(self.name, "subjects", lists_of(self.subjects), run.items)
        prompts = run.prompts or [None] * run.items
        texts = [layout.text for layout in run.layouts.values() if layout and layout.text]
        length = texts[0].stop - texts[0].start if texts else None
        if self.features is not None and self.masks is None:
            check_features(self.name, self.features, run, grids)
        return _State(
            positions=[
                _positions_of(self.name, words, prompt[0] if prompt else None, length)
                for words, prompt in zip(lists, prompts, strict=True)
            ],
            grids=grids,
            sizes=step_sizes(run.total or 1, self.scale_factor, self.scale_range),
        )

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        state: _State = call.state
        mean = of_heads(value, call.heads).mean(dim=1)
        by_item = mean.reshape(len(state.positions), *state.grids[call.site.path], -1)
        state.maps[call.site.path] = torch.stack(
            [one[..., at].sum(-1) for one, at in zip(by_item, state.positions, strict=True)]
        )

    def loss(self, state: _State, step: Step) -> Tensor:
        paths = list(state.maps)
        maps = merge_maps(list(state.maps.values()), state.size)
        state.maps = {}
        if state.masks is None or state.masks[0] != step.index:
            state.masks = (step.index, self._masks_at(state, step, paths))
        losses = mask_losses(maps, state.masks[1], self.beta)
        has_subject = torch.tensor([bool(at) for at in state.positions], device=losses.device)
        return losses * has_subject

    def move(self, state: _State, step: Step, evaluation: int, loss: Tensor) -> Move:
        strength = self.steps.strength(step.index, step.total)
        size = float(state.sizes[step.index]) * strength
        return Move(size * (loss != 0), again=evaluation + 1 < self.iterations)

    def _masks_at(self, state: _State, step: Step, paths: Sequence[str]) -> Tensor:
        """Masks of a step, bool ``(items, F, h, w)``."""
        if self.masks is not None:
            return resized_masks(self.masks, state.size)[None]
        assert self.features is not None  # without either it is off
        kept = [
            self.features.get(step.timestep, path, WORDS).reshape(-1, *state.grids[path])
            for path in paths
        ]
        masks = motion_masks(merge_maps(kept, state.size), self.threshold, smoothing=self.smoothing)
        return masks[[item % len(masks) for item in range(len(state.positions))]]

    def _grid_of(self, path: str, layout: Layout | None) -> tuple[int, int, int]:
        if layout is None or not layout.is_video:
            raise UnsupportedModelError(
                f"{self.name} needs a model of clips, with frames that are known at {path}; it "
                f"supports {self.families}"
            )
        if self.masks is not None and len(self.masks) != layout.grid[0]:
            raise SettingError(
                f"{self.name}: masks= has {len(self.masks)} frames, but the latents of this run "
                f"have {layout.grid[0]}; give one mask for each of them"
            )
        return layout.grid


def _positions_of(
    technique: str, words: Words, prompt: PromptTokens | None, length: int | None
) -> list[int]:
    """Positions of all tokens of a subject's words, each once."""
    found = find_tokens(technique, "subjects", words, prompt, length)
    return sorted({position for positions in found for position in positions})


def _check_masks(technique: str, masks: Any) -> None:
    is_clip = isinstance(masks, Tensor) and masks.dim() == 3 and masks.numel() > 0
    if is_clip and bool(((masks >= 0) & (masks <= 1)).all()):
        return
    shape = f" of shape {tuple(masks.shape)}" if isinstance(masks, Tensor) else ""
    raise SettingError(
        f"{technique}: masks= must be a tensor (frames, height, width) of booleans or of numbers in"
        f" [0, 1]; got {type(masks).__name__}{shape}"
    )
