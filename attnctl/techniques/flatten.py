"""Flatten: frames edited together, by attention over all of them and along their motion."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.blocks import ModelParts
from attnctl.calls import AttentionCall, Layout, Needs, RunStart, Step
from attnctl.clips.frames import (
    FrameOrder,
    check_frames,
    frame_order,
    frames_of_run,
    mixed_output,
)
from attnctl.clips.motion import ClipLanes, flow_of_frames, lanes_of_run, load_flow, wanted_grids
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import check_features, for_every_row, injection_places
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.flow import ClipFlow
from attnctl.kernels.masks import repeat_heads
from attnctl.ops.lanes import join_frames, lane_attention, split_frames
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.settings import grid_or_none
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole


@register("flatten")
@dataclass(frozen=True)
class Flatten(Technique):
    """Edit a clip as one: tokens attend to all frames, then along their own motion.

    Self-attention becomes dense over the frames of a clip. At the finest resolution a second
    attention without weights of its own follows, in which each token sees the tokens of its own
    trajectory alone: ``softmax(q k^T / sqrt(d)) v`` along the flow. With ``features`` of an
    inversion, queries, keys and residual features of the source are taken over in early steps.
    The frames are the items of a picture model's batch, AnimateDiff's frames, or those on the token
    axis of a video transformer, whose attention is dense already. One frame alone is left as it
    is; where a trajectory ends, by a cut or an occlusion, another begins.

    Attributes:
        flow: Motion of the source clip: a ``ClipFlow``, or a file that ``attnctl.flow.read_flow``
            takes. None: dense attention over the frames alone.
        old_qk: Flow attention takes queries and keys as dense attention used them, not its output;
            the authors do so for edits of style.
        resolutions: Grids of tokens with flow attention, such as (64, 32) or ("36x64",); empty: the
            finest one that ``where`` selects.
        dense: Attend to all frames. False keeps each site's own attention, or that of another
            technique such as CrossFrameAttention, and adds flow attention to it.
        frames: Frames of a clip in a picture model's batch; None: all items are one clip.
        occlusion: End the trajectories of tokens that the forward-backward check calls hidden.
        carry: Keep the part of a motion that is less than a token for the next frame. The authors
            round each frame's motion alone; on coarse grids slow motion is lost so.
        seed: Decides which of several tokens that move to one place goes on; the pipeline's
            generator is not touched.
        features: Queries, keys and residual features of an inversion of the clip, recorded at
            ``attnctl.editing.injection.injection_places``; None: nothing is taken over.
        inject_until: They are taken over until this step (int) or fraction of the run (float).
        where: Self- or joint attention over image tokens.
    """

    reference: ClassVar[str] = "Cong et al., ICLR 2024, arXiv 2310.05922"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt; flow attention alone: every known family"

    flow: ClipFlow | Tensor | str | Path | None = field(default=None, repr=False)
    old_qk: bool = False
    resolutions: tuple[Any, ...] = ()
    dense: bool = True
    frames: int | None = None
    occlusion: bool = False
    carry: bool = False
    seed: int = 0
    features: FeatureStore | None = field(default=None, compare=False)
    inject_until: float | int = 0.8
    where: Where = field(default=Where("self|joint"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.name, self.frames)
        if not is_whole(self.seed):
            raise SettingError(f"{self.name}: seed={self.seed!r} must be a whole number")
        if not isinstance(self.flow, ClipFlow | Tensor | str | Path | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(
                f"{self.name}: flow={self.flow!r} must be a ClipFlow (attnctl.flow.estimate_flow "
                "makes one from the frames) or a file that attnctl.flow.read_flow takes"
            )
        asked: Any = self.resolutions
        several = asked if isinstance(asked, list | tuple) else [asked]
        grids = tuple(grid_or_none(self.name, "resolutions", one) for one in several)
        object.__setattr__(self, "resolutions", tuple(grid for grid in grids if grid is not None))
        if isinstance(self.flow, Tensor):
            object.__setattr__(self, "flow", ClipFlow(self.flow))
        self._injection  # noqa: B018 - refuses a bad bound

    @property
    def _injection(self) -> Schedule:
        return until(self.inject_until)

    def settings(self) -> dict[str, Any]:
        """Plain values; of a flow or features in memory a description, which cannot build it."""
        flow = self.flow
        told = flow if flow is None or isinstance(flow, str) else str(flow)
        if isinstance(flow, ClipFlow):
            told = f"flow of {flow.frames} frames, {flow.size[0]}x{flow.size[1]} pixels"
        features = None if self.features is None else repr(self.features)
        return super().settings() | {"flow": told, "features": features}

    def needs(self) -> Needs:
        return Needs(layout=True, couples=True)

    def overrides(self, method: str) -> bool:
        """Only the phases that its settings ask for."""
        asked = {
            "attend": self.dense,
            "edit_output": self.flow is not None,
            "edit_qkv": self.features is not None,
            "module_hooks": self.features is not None,
        }
        return asked[method] if method in asked else super().overrides(method)

    def all_claims(self) -> frozenset[str]:
        taken = frozenset[str]() if self.features is None else frozenset({"query", "kv"})
        return super().all_claims() | taken

    def strength_at(self, index: int, total: int | None) -> float:
        is_on = self.dense or self.flow is not None or self.features is not None
        return self.steps.strength(index, total) if is_on else 0.0

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where image tokens attend to each other"
        check_kinds(self.name, sites, ("self", "joint"), does, "self|joint")
        for site in sites:
            layout = layouts[site]
            if self.dense and site.kind == "joint" and layout and not layout.is_video:
                raise UnsupportedModelError(
                    f"{self.name}: {site.path} attends to text and one picture jointly, where "
                    "attention over all frames is not defined; use dense=False"
                )
        return sites

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        places = injection_places(model.sites)
        if not places.sites:
            raise NoSiteError(
                f"{self.name}: features= are taken over on the way up of a UNet, which "
                f"{model.denoiser} ({model.family}) has not; leave them out"
            )
        return tuple(ModuleHook(path, "after", "inject_residual") for path in places.modules)

    def begin(self, run: RunStart) -> "_State":
        if not run.sites:  # nothing to do
            return _State(ClipLanes({}), frozenset())
        layouts = [run.layouts[site.path] for site in run.sites]
        frames = frames_of_run(self.name, layouts, run.items, self.frames)
        grids = wanted_grids(self.name, layouts, self.resolutions)
        lanes = ClipLanes({})
        if self.flow is not None:
            is_video = any(layout is not None and layout.is_video for layout in layouts)
            flow = flow_of_frames(load_flow(self.flow), frames, is_video=is_video)
            lanes = lanes_of_run(
                flow, frames, grids, seed=self.seed, occlusion=self.occlusion, carry=self.carry
            )
        elif self.dense:
            run.note(f"{self.name}: no flow is given, so frames meet in dense attention alone")
        if frames == 1:
            run.warn(f"{self.name}: the clip has one frame, which is left as it is")
        return _State(lanes, self._checked_features(run))

    def _checked_features(self, run: RunStart) -> frozenset[str]:
        """Sites whose queries and keys are taken over; refuses features that do not fit."""
        if self.features is None:
            return frozenset()
        self._injection.strength(0, run.total)  # refuses fractions of a run of unknown length
        places = injection_places(run.sites)
        check_features(self.name, self.features, run, places.sites + places.modules)
        return frozenset(places.sites)

    def edit_qkv(self, call: AttentionCall) -> None:
        state: _State = call.state
        if self.features is None or call.site.path not in state.injected:
            return
        if not self._is_injecting(call.step):
            return
        timestep, path = call.step.timestep, call.site.path
        query, key = (
            for_every_row(self.features.get(timestep, path, what, like=tensor), tensor)
            for what, tensor in (("query", call.query), ("key", call.key))
        )
        call.query, call.key = (
            mixed_output(call, call.query, query),
            mixed_output(call, call.key, key),
        )

    def inject_residual(self, call: ModuleCall) -> None:
        """Take over the output of a hooked module from the features."""
        if self.features is None or not self._is_injecting(call.step):
            return
        own: Tensor = call.output
        taken = self.features.get(call.step.timestep, call.path, "output", like=own)
        taken = for_every_row(taken, own)
        call.output = taken if call.strength == 1.0 else torch.lerp(own, taken, call.strength)

    def _is_injecting(self, step: Step) -> bool:
        return self._injection.strength(step.index, step.total) != 0.0

    def attend(self, call: AttentionCall) -> Tensor:
        order = frame_order(call, self.frames)
        if order.on_tokens or order.count == 1:
            return call.attend(call.query, call.key, call.value, call.mask)
        if call.mask is not None:
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} has an attention mask for single frames, which "
                "says nothing of other frames; move the technique that adds it, or this one, to "
                "other sites with where="
            )
        tensors = (call.query, call.key, call.value)
        clips = [join_frames(t, order.count).split(1) for t in tensors]
        joined = [call.attend(*parts) for parts in zip(*clips, strict=True)]
        out = split_frames(torch.cat(joined), order.count)
        if call.heads is None and call.strength == 1.0:
            return out
        return mixed_output(call, call.attend(*tensors), out)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        order = frame_order(call, self.frames)
        state: _State = call.state
        lanes = state.lanes.at(order.grid, out.device)
        if lanes is None:
            return out
        value = _on_tokens(order, out)
        query = key = value
        if self.old_qk:
            query = _on_tokens(order, call.query)
            key = _on_tokens(order, repeat_heads(call.key, out.shape[1]))
        made = lane_attention(query, key, value, lanes, call.scale)
        joined = order.join(made.unflatten(2, (order.count, -1)), out)
        return mixed_output(call, out, joined)


@dataclass(slots=True)
class _State:
    """Lanes of the run, and the sites whose queries and keys are taken over."""

    lanes: ClipLanes
    injected: frozenset[str]


def _on_tokens(order: FrameOrder, tensor: Tensor) -> Tensor:
    """Image tokens of all frames of a clip in one sequence, ``(clips, H, F * n, D)``."""
    return order.split(tensor).flatten(2, 3)
