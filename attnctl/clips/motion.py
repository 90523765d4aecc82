"""The motion of a clip in one run: lanes for each grid of tokens that attention follows it on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnctl.calls import Layout
from attnctl.errors import FlowError, NoSiteError
from attnctl.flow import ClipFlow, Lanes, build_lanes, read_flow
from attnctl.flow.fields import frames_of_latents

Grid = tuple[int, int]


@dataclass(slots=True)
class ClipLanes:
    """Lanes by grid of tokens, each on the device that asked last."""

    by_grid: dict[Grid, Lanes]

    def at(self, grid: Grid, device: torch.device) -> Lanes | None:
        """The lanes of a grid; ``None`` if attention does not follow the motion there."""
        lanes = self.by_grid.get(grid)
        if lanes is not None and lanes.cells.device != device:
            lanes = self.by_grid[grid] = lanes.to(device)
        return lanes


def lanes_of_run(
    flow: ClipFlow, frames: int, grids: Iterable[Grid], *, seed: int, occlusion: bool, carry: bool
) -> ClipLanes:
    """Link the tokens of a clip on each grid; see :func:`attnctl.flow.build_lanes`."""
    return ClipLanes(
        {
            grid: build_lanes(flow, grid, seed=seed, occlusion=occlusion, carry=carry)
            for grid in grids
        }
        if frames > 1
        else {}
    )


def load_flow(flow: ClipFlow | Tensor | str | Path) -> ClipFlow:
    """Take a flow as it is, or read it from a file.

    Raises:
        FlowError: it cannot be read, or has another shape.
    """
    if isinstance(flow, ClipFlow):
        return flow
    return ClipFlow(flow) if isinstance(flow, Tensor) else read_flow(flow)


def flow_of_frames(flow: ClipFlow, frames: int, *, is_video: bool) -> ClipFlow:
    """The flow between the frames that a model has.

    A model that compresses time has fewer frames than the clip has pictures; the flow is then
    composed over the pictures of each.

    Args:
        flow: Of the clip.
        frames: Frames of the model.
        is_video: Whether the model may have compressed time.

    Raises:
        FlowError: the flow is for another number of frames.
    """
    pictures = flow.frames
    if frames == pictures:
        return flow
    compression, rest = divmod(pictures - 1, max(1, frames - 1))
    if is_video and frames > 1 and not rest and compression > 1:
        return flow.picked(frames_of_latents(pictures, compression))
    flow.check_frames(frames)
    raise FlowError(f"the flow is for {pictures} frames, the clip has {frames}")


def wanted_grids(
    technique: str, layouts: Sequence[Layout | None], resolutions: Sequence[Grid]
) -> tuple[Grid, ...]:
    """Grids of tokens to follow the motion on: those asked for, or the finest.

    Raises:
        NoSiteError: no site has a grid that is asked for.
    """
    there = {layout.grid[1:] for layout in layouts if layout is not None}
    if not resolutions:
        return (max(there, key=lambda grid: grid[0] * grid[1]),)
    missing = [grid for grid in resolutions if grid not in there]
    if missing:
        shown = ", ".join(f"{h}x{w}" for h, w in sorted(there, reverse=True))
        raise NoSiteError(
            f"{technique}: resolutions has {missing[0][0]}x{missing[0][1]}, but the selected sites "
            f"of this run have the grids {shown}"
        )
    return tuple(resolutions)
