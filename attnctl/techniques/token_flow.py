"""TokenFlow: keyframes are edited together, and their attention is spread to the other frames."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.clips.frames import check_frames, frame_order, frames_of_run, mixed_output
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import check_features
from attnctl.errors import FeatureError, SettingError, UnsupportedModelError
from attnctl.ops.lanes import join_frames
from attnctl.ops.token_flow import draw_keyframes, spread_outputs
from attnctl.registry import register
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole


@register("token-flow")
@dataclass(frozen=True)
class TokenFlow(Technique):
    """Edit keyframes together and spread their attention outputs to the frames between them.

    At each step one frame of every chunk is a keyframe, drawn at random. Keyframes attend to all
    keyframes. Every other token takes over the attention output of the keyframe's token whose
    source looks most alike, mixed with that of the chunk before. The authors run keyframes in a
    pass of their own; here one pass holds all frames, so a keyframe keeps its own output where
    theirs is mixed with that of the chunk before. Taking over queries, keys and residual features
    is that of ``Flatten(dense=False, features=...)``.

    Attributes:
        features: What the self-attention of the source was given (the outputs of ``norm1``),
            recorded in its inversion at :func:`matched_modules`; None: it does nothing.
        chunk: Frames for each keyframe.
        frames: Frames of a clip in a picture model's batch; None: all items are one clip.
        seed: Of the choice of keyframes; the pipeline's generator is not touched.
        where: Self-attention of picture models and AnimateDiff.
    """

    reference: ClassVar[str] = "Geyer et al., ICLR 2024, arXiv 2307.10373"
    families: ClassVar[str] = "UNet, UNetMotion"

    features: FeatureStore | None = field(default=None, compare=False)
    chunk: int = 8
    frames: int | None = None
    seed: int = 0
    where: Where = field(default=Where("self"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.name, self.frames)
        if not is_whole(self.chunk) or self.chunk < 1 or not is_whole(self.seed):
            raise SettingError(
                f"{self.name}: chunk={self.chunk!r} must be a whole number of frames from 1, "
                f"seed={self.seed!r} a whole number"
            )

    def settings(self) -> dict[str, Any]:
        """Plain values; of features a description, which cannot build it again."""
        features = None if self.features is None else repr(self.features)
        return super().settings() | {"features": features}

    def needs(self) -> Needs:
        return Needs(layout=True, couples=True)

    def strength_at(self, index: int, total: int | None) -> float:
        return 0.0 if self.features is None else self.steps.strength(index, total)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        for site in sites:
            layout = layouts[site]
            on_tokens = layout is not None and layout.is_video and layout.fold == "rows"
            if site.kind != "self" or on_tokens or not site.path.endswith("attn1"):
                raise UnsupportedModelError(
                    f"{self.name} acts on self-attention of single frames behind a norm1, as UNets "
                    f"have it; {site.path} is none. Select other sites, such as where='self'"
                )
        return sites

    def begin(self, run: RunStart) -> None:
        if self.features is None:
            return
        layouts = [run.layouts[site.path] for site in run.sites]
        frames = frames_of_run(self.name, layouts, run.items, self.frames)
        check_features(self.name, self.features, run, matched_modules(run.sites))
        if frames == 1:
            run.warn(f"{self.name}: the clip has one frame, which is left as it is")

    def attend(self, call: AttentionCall) -> Tensor:
        order = frame_order(call, self.frames)
        plain = (call.query, call.key, call.value)
        if self.features is None or order.count == 1:
            return call.attend(*plain, call.mask)
        if call.mask is not None:
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} has an attention mask for single frames, which "
                "says nothing of other frames; move the technique that adds it, or this one, to "
                "other sites with where="
            )
        path = _module_of(call.site)
        source = self.features.get(call.step.timestep, path, "output", like=call.query)
        if len(source) != order.count:
            raise FeatureError(
                f"{self.name}: the features are those of {len(source)} frames, a clip of this run "
                f"has {order.count}"
            )
        keyframes = draw_keyframes(order.count, self.chunk, self.seed, call.step.index)
        clips = torch.arange(order.clips, device=call.query.device)[:, None] * order.count
        at = (clips + torch.tensor(keyframes, device=clips.device)).flatten()
        joined = [join_frames(tensor[at], len(keyframes)) for tensor in plain]
        outputs = call.attend(*joined).unflatten(2, (len(keyframes), -1))
        spread = spread_outputs(outputs, source, keyframes, self.chunk)
        made = order.join(spread, call.query)
        if call.heads is None and call.strength == 1.0:
            return made
        return mixed_output(call, call.attend(*plain), made)


def matched_modules(sites: Iterable[Site]) -> tuple[str, ...]:
    """Paths of the modules whose outputs tell which tokens are alike, for a ``ModuleRecorder``."""
    return tuple(_module_of(site) for site in sites if site.kind == "self")


def _module_of(site: Site) -> str:
    return site.path.removesuffix("attn1") + "norm1"
