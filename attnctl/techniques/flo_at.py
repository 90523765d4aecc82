"""FloAt: the self-attention maps of a frame follow those of the frame before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.clips.frames import (
    check_frames,
    frame_order,
    frames_of_run,
    mixed_output,
    refuse_joint_frames,
)
from attnctl.clips.motion import Grid, flow_of_frames, load_flow, wanted_grids
from attnctl.errors import FlowError, SettingError, UnsupportedModelError, nearest
from attnctl.flow import ClipFlow, resize_flow
from attnctl.ops.flo_at import AXES, INTERPOLATIONS, REGIONS, Trace, follow_map, trace_back
from attnctl.registry import register
from attnctl.settings import check_number, grid_or_none
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where

MOST_TOKENS = 1024  # of a frame, where its maps are followed by default: 32 by 32


@register("flo-at")
@dataclass(frozen=True)
class FloAt(Technique):
    """Make clips follow a given motion: self-attention maps are mixed with those of the last frame.

    The map of a frame becomes ``w A + (1 - w) W``, with ``W`` the map of the frame before, warped
    along the flow. Made for clips that are generated frame by frame with a control, such as normal
    maps, whose flow is given. The frames are the items of a picture model's batch, or AnimateDiff's
    frames; branches, clips and added rows never mix. The first frame, a frame behind a cut, and
    tokens that were outside of the picture keep their maps. The authors' code is not public: where
    it acts, and all numbers, are choices made here.

    Attributes:
        flow: Motion of the clip, with its backward flow: a ``ClipFlow``, or a file that
            ``attnctl.flow.read_flow`` takes. None: off.
        own_weight: Weight of a frame's own map, in [0, 1]; 1 is off.
        axes: What moves with the flow: queries and keys (``both``), or ``query`` or ``key`` alone.
            Where another technique replaces keys, only ``query`` makes sense.
        recursive: Mix with the map that the frame before has got, not with its own; the first
            frame then reaches all others.
        region: Tokens whose map changes: ``all``, ``moving``, or ``static``, which take the map of
            the frame before as it is.
        least_motion: Displacement from which a token counts as moving, in tokens, from 0.
        interpolation: How maps are read between tokens: ``bilinear`` or ``nearest``.
        resolutions: Grids of tokens where it acts, such as (32, 16) or ("18x32",); empty: those of
            at most 1024 tokens, else the coarsest. Maps of finer grids take much memory.
        frames: Frames of a clip in a picture model's batch; None: all items are one clip.
        where: Self-attention.
    """

    reference: ClassVar[str] = "Mishra et al. 2024, arXiv 2411.15028, reconstructed"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt"

    flow: ClipFlow | str | Path | None = field(default=None, repr=False)
    own_weight: float = 0.5
    axes: str = "both"
    recursive: bool = False
    region: str = "all"
    least_motion: float = 0.1
    interpolation: str = "bilinear"
    resolutions: tuple[Any, ...] = ()
    frames: int | None = None
    where: Where = field(default=Where("up:self"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.name, self.frames)
        check_number(self.name, "own_weight", self.own_weight, at_least=0, at_most=1)
        check_number(self.name, "least_motion", self.least_motion, at_least=0)
        choices = {"axes": AXES, "region": REGIONS, "interpolation": INTERPOLATIONS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise SettingError(f"{self.name}: {name}={value!r}; {nearest(str(value), allowed)}")
        if not isinstance(self.recursive, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(f"{self.name}: recursive={self.recursive!r} must be True or False")
        if not isinstance(self.flow, ClipFlow | str | Path | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(
                f"{self.name}: flow={self.flow!r} must be a ClipFlow with its backward flow "
                "(attnctl.flow.estimate_flow makes one from frames) or a file of one"
            )
        asked: Any = self.resolutions
        several = asked if isinstance(asked, list | tuple) else [asked]
        grids = tuple(grid_or_none(self.name, "resolutions", one) for one in several)
        object.__setattr__(self, "resolutions", tuple(grid for grid in grids if grid is not None))

    def settings(self) -> dict[str, Any]:
        """Plain values; of a flow in memory a description, which cannot build it."""
        flow = self.flow
        told = flow if flow is None or isinstance(flow, str) else str(flow)
        if isinstance(flow, ClipFlow):
            told = f"flow of {flow.frames} frames, {flow.size[0]}x{flow.size[1]} pixels"
        return super().settings() | {"flow": told}

    def needs(self) -> Needs:
        return Needs(layout=True, couples=True)

    def strength_at(self, index: int, total: int | None) -> float:
        is_on = self.flow is not None and self.own_weight != 1
        return self.steps.strength(index, total) if is_on else 0.0

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where the tokens of a picture attend to each other"
        check_kinds(self.name, sites, ("self",), does, "self")
        refuse_joint_frames(self.name, sites, layouts)
        known = list(layouts.values())
        asked = self.resolutions
        grids = wanted_grids(self.name, known, asked) if asked else _usual_grids(known)
        return tuple(s for s in sites if (x := layouts[s]) is not None and x.grid[1:] in grids)

    def begin(self, run: RunStart) -> "_State":
        layouts = [run.layouts[site.path] for site in run.sites]
        frames = frames_of_run(self.name, layouts, run.items, self.frames)
        if frames == 1:
            run.warn(f"{self.name}: the clip has one frame, which is left as it is")
        if self.flow is None or frames == 1:
            return _State({})
        is_video = any(layout is not None and layout.is_video for layout in layouts)
        flow = flow_of_frames(load_flow(self.flow), frames, is_video=is_video)
        if flow.backward is None:
            raise FlowError(
                f"{self.name}: the flow has no backward part, which tells where each token was in "
                "the frame before; give ClipFlow(forward, backward), or estimate it with "
                "backward=True"
            )
        grids = {layout.grid[1:] for layout in layouts if layout is not None}
        return _State({grid: self._traces(flow, flow.backward, grid) for grid in grids})

    def _traces(self, flow: ClipFlow, backward: Tensor, grid: Grid) -> list[Trace | None]:
        """For each frame but the first, where its tokens were; ``None`` behind a cut."""
        sized = resize_flow(backward, *grid)
        return [
            None
            if frame in flow.cuts
            else trace_back(one, self.interpolation, float(self.least_motion))
            for frame, one in enumerate(sized)
        ]

    def edit_probs(self, call: AttentionCall, probs: Tensor) -> Tensor:
        order = frame_order(call, self.frames)
        state: _State = call.state
        if order.count == 1:
            return probs
        if self.axes != "query" and probs.shape[3] != probs.shape[2]:
            raise UnsupportedModelError(
                f"{self.name}: the {probs.shape[3]} keys at {call.site.path} are not the tokens of "
                "the frame, since another technique replaces them; use axes='query'"
            )
        own = order.split(probs).unbind(2)  # F maps (clips, H, n, K)
        edited = [own[0]]
        for frame, trace in enumerate(state.at(order.grid, probs.device), start=1):
            if trace is None:
                edited.append(own[frame])
                continue
            before = edited[-1] if self.recursive else own[frame - 1]
            made = follow_map(
                own[frame],
                before,
                trace,
                own_weight=self.own_weight,
                axes=self.axes,
                region=self.region,
            )
            edited.append(made)
        return mixed_output(call, probs, order.join(torch.stack(edited, dim=2), probs))


@dataclass(slots=True)
class _State:
    """Traces of the run by grid of tokens, each on the device that asked last."""

    traces: dict[Grid, list[Trace | None]]

    def at(self, grid: Grid, device: torch.device) -> list[Trace | None]:
        """Traces of the frames but the first."""
        found = self.traces[grid]
        if any(one is not None and one.index.device != device for one in found):
            found = self.traces[grid] = [None if one is None else one.to(device) for one in found]
        return found


def _usual_grids(layouts: Sequence[Layout | None]) -> tuple[Grid, ...]:
    """Grids of at most `MOST_TOKENS` tokens, else the coarsest."""
    there = {layout.grid[1:] for layout in layouts if layout is not None}
    grids = sorted(there, key=lambda grid: grid[0] * grid[1])
    small = tuple(grid for grid in grids if grid[0] * grid[1] <= MOST_TOKENS)
    return small or tuple(grids[:1])
