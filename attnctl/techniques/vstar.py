"""VSTAR: more change over time, by a band in temporal attention and a prompt for every frame."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, InputsCall, Layout, Needs, OtherPrompt
from attnctl.chosen_heads import on_heads
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError, nearest
from attnctl.kernels import attention_scores
from attnctl.ops.temporal_maps import PEAKS, add_band, blend_stages, gaussian_band, row_peaks
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import check_number
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where

_PRESET = re.compile(r"64D(\d+(?:\.\d+)?)(?:_32D(\d+(?:\.\d+)?))?")


@dataclass(slots=True)
class _Text:
    """The embeddings of the stages, once they are known: ``(K, T, D)``."""

    stages: Tensor | None = None


@register("vstar")
@dataclass(frozen=True)
class VSTAR(Technique):
    """Make clips more dynamic: frames look more at near frames, and the prompt moves on.

    Temporal attention gets a band in its logits, ``S + scale * max_j S_ij * exp(-(i-j)^2 /
    (2 sigma^2))``, the peak taken before any technique's bias; narrow bands mean more change from
    frame to frame. With ``stages`` each frame has an embedding of its own in cross-attention,
    between those of the stages around it; the unconditional text stays.

    Attributes:
        sigmas: Width of the band in frames, above 0, at each level from the finest; levels behind
            the last are untouched. Or a preset of the authors, such as ``64D1`` or ``64D1_32D8``
            (their advice for 48 frames and more).
        scale: Height of the band in units of each row's largest logit, from 0; 0 leaves maps alone.
        peak: What a negative largest logit becomes: ``signed`` keeps it, as the authors do, so
            that the band is subtracted; ``clamped`` makes it 0; ``absolute`` drops its sign.
        stages: Prompts of the stages that the clip goes through, in order; the pipeline's own
            prompt is not shown to any frame then. Empty: the prompt stays.
        blend: Go from stage to stage linearly; False holds each stage until the next.
        steps: The default is the first 14 of 25 steps, as the authors have it.
        stage_embeds: Instead of ``stages``: embeddings ``(stages, tokens, width)``, for a bare
            denoiser too.
    """

    reference: ClassVar[str] = "Li et al., ICLR 2025, arXiv 2403.13501"
    families: ClassVar[str] = "UNetMotion (AnimateDiff); the band wherever attention is temporal"

    sigmas: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    peak: str = "signed"
    stages: tuple[str, ...] = ()
    blend: bool = True
    steps: Schedule = field(default=until(0.56), kw_only=True)
    where: Where = field(default=Where("temporal"), kw_only=True)
    stage_embeds: Tensor | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sigmas", _sigmas(self.name, self.sigmas))
        check_number(self.name, "scale", self.scale, at_least=0)
        if self.peak not in PEAKS:
            raise SettingError(f"{self.name}: peak={self.peak!r}; {nearest(str(self.peak), PEAKS)}")
        object.__setattr__(self, "stages", _texts(self.name, self.stages))
        embeds = self.stage_embeds
        if embeds is not None and (self.stages or embeds.dim() != 3):
            raise SettingError(
                f"{self.name}: stage_embeds takes the place of stages= and must have the axes "
                f"(stages, tokens, width); got {tuple(embeds.shape)}"
            )

    def settings(self) -> dict[str, Any]:
        """Plain values; of embeddings the shape alone, which cannot build it again."""
        embeds = self.stage_embeds
        shape = None if embeds is None else str(tuple(embeds.shape))
        return super().settings() | {"stage_embeds": shape}

    def needs(self) -> Needs:
        return Needs(layout=self._has_stages)

    @property
    def _has_stages(self) -> bool:
        return bool(self.stages) or self.stage_embeds is not None

    def overrides(self, method: str) -> bool:
        if method == "edit_inputs":
            return self._has_stages
        if method == "edit_scores":
            return self.scale > 0
        return super().overrides(method)

    def strength_at(self, index: int, total: int | None) -> float:
        if self.scale == 0 and not self._has_stages:
            return 0.0
        return self.steps.strength(index, total)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where frames attend to frames"
        check_kinds(self.name, sites, ("temporal",), does, "temporal")
        kept = tuple(site for site in sites if site.level < len(self.sigmas))
        if sites and not kept:
            levels = sorted({site.level for site in sites})
            raise NoSiteError(
                f"{self.name}: sigmas={list(self.sigmas)} are those of the levels from 0 on; the "
                f"selected sites have levels {levels}; give a sigma for each level"
            )
        return kept

    def begin(self, run: Any) -> _Text:
        return _Text(self.stage_embeds)

    def edit_inputs(self, call: InputsCall) -> None:
        name = "encoder_hidden_states"
        text: Tensor = call.arguments[name]
        frames = text.shape[0] // len(call.rows)
        if call.latents.dim() != 5 or frames != call.latents.shape[2]:
            raise UnsupportedModelError(
                f"{self.name}: stages= needs a denoiser that is given a text for each frame, such "
                f"as AnimateDiff's; here {len(call.rows)} rows come with {len(text)} texts"
            )
        found = self._stages(call)
        if len(found) > frames:
            raise SettingError(
                f"{self.name}: {len(found)} stages for {frames} frames; give at most one a frame"
            )
        made = blend_stages(found.to(text), frames, blend=self.blend)
        if made.shape[1:] != text.shape[1:]:
            raise SettingError(
                f"{self.name}: stage_embeds are {tuple(found.shape[1:])} a stage, the prompt's "
                f"embeddings {tuple(text.shape[1:])}"
            )
        parts = text.unflatten(0, (len(call.rows), frames)).clone()
        for place, row in enumerate(call.rows):
            if row.branch == "cond":
                parts[place] = torch.lerp(parts[place], made, call.strength)
        call.arguments[name] = parts.flatten(0, 1)

    def _stages(self, call: InputsCall) -> Tensor:
        """Embeddings of the stages, encoded once a run."""
        state: _Text = call.state
        if state.stages is None:
            texts = [call.encode(OtherPrompt(stage)) for stage in self.stages]
            state.stages = torch.cat([text["encoder_hidden_states"] for text in texts])
        return state.stages

    def edit_scores(self, call: AttentionCall, scores: Tensor) -> Tensor:
        frames = scores.shape[-1]
        if scores.shape[-2] != frames:
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} attends from {scores.shape[-2]} frames to "
                f"{frames} other tokens; leave it out with where="
            )
        band = gaussian_band(frames, self.sigmas[call.site.level], scores)
        peak = row_peaks(attention_scores(call.query, call.key, call.scale), self.peak)
        lifted = add_band(scores, peak, band, self.scale * call.strength)
        return on_heads(lifted, scores, call.heads, scores.shape[1])


def _sigmas(technique: str, value: Any) -> tuple[float, ...]:
    """Widths of the band, from a preset, a number or several."""
    if isinstance(value, str):
        found = _PRESET.fullmatch(value)
        if found is None:
            raise SettingError(
                f"{technique}: sigmas={value!r} is no preset; write 64D1, 64D4_32D8 and so on (the "
                "number behind D is the width in frames), or the widths themselves"
            )
        value = [float(group) for group in found.groups() if group is not None]
    several: Sequence[Any] = value if isinstance(value, Sequence) else [value]
    for one in several:
        check_number(technique, "sigmas", one, at_least=0)
    if not several or 0 in several:
        raise SettingError(f"{technique}: sigmas={value!r} must be numbers above 0, one a level")
    return tuple(float(one) for one in several)


def _texts(technique: str, value: Any) -> tuple[str, ...]:
    several: Sequence[Any] = () if isinstance(value, str) else value
    if isinstance(value, str) or not all(isinstance(one, str) for one in several):
        raise SettingError(
            f"{technique}: stages={value!r} must be prompts in order, such as "
            "('a seed in the ground', 'a young tree')"
        )
    return tuple(several)
