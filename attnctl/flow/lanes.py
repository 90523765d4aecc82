"""Trajectories of tokens through a clip, as lanes of equal length."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attnctl.errors import FlowError
from attnctl.flow.clip_flow import ClipFlow

NONE = -1


@dataclass(frozen=True, eq=False)
class Lanes:
    """A partition of the tokens of a clip into trajectories, laid out in n lanes of F tokens.

    Attributes:
        grid: Frames, height and width of the tokens; ``n = height * width``.
        cells: ``(F, n)`` int64: the cell ``y * width + x`` in which each lane is in each frame.
            Each row is a permutation of the n cells; frame 0 is in order.
        segment: ``(n, F)`` int16: number of the trajectory inside its lane, from 0, growing with
            time. Tokens of a lane belong together if and only if their segments are equal.
    """

    grid: tuple[int, int, int]
    cells: Tensor
    segment: Tensor

    @property
    def count(self) -> int:
        """Number of trajectories."""
        return int((self.segment[:, -1].long() + 1).sum())

    @cached_property
    def index(self) -> Tensor:
        """Token ``t * n + cell`` of each lane and frame, ``(n, F)`` int64; each token once."""
        frames, cells = self.cells.shape
        starts = torch.arange(frames, device=self.cells.device) * cells
        return (self.cells + starts[:, None]).mT.contiguous()

    @cached_property
    def is_unbroken(self) -> bool:
        """Whether every lane is a single trajectory, so that no mask is needed."""
        return not bool(self.segment[:, -1].any())

    def mask(self, rows: slice = slice(None)) -> Tensor:
        """Which tokens of each lane see each other, bool ``(lanes, F, F)``."""
        chosen = self.segment[rows]
        return chosen[:, :, None] == chosen[:, None, :]

    def roots(self) -> Tensor:
        """First token of each token's trajectory, ``(F, n)`` int64 in token numbers."""
        return self._spread(self.index.gather(1, self._starts()))

    def positions(self) -> Tensor:
        """Place of each token in its trajectory, from 0, ``(F, n)`` int64."""
        times = torch.arange(self.grid[0], device=self.cells.device)
        return self._spread(times - self._starts())

    def lengths(self) -> Tensor:
        """Length of each token's trajectory, ``(F, n)`` int64."""
        return self._spread(self.mask().sum(2))

    def to(self, device: torch.device | str) -> "Lanes":
        """The same lanes on another device."""
        return Lanes(self.grid, self.cells.to(device), self.segment.to(device))

    def _starts(self) -> Tensor:
        """Frame in which each token's trajectory begins, by lane, ``(n, F)``."""
        return self.mask().int().argmax(2)

    def _spread(self, values: Tensor) -> Tensor:
        """Bring values by lane ``(n, F)`` to their tokens ``(F, n)``."""
        return torch.empty_like(self.cells).scatter_(1, self.cells, values.mT.to(torch.int64))


def build_lanes(
    flow: ClipFlow | Tensor,
    grid: tuple[int, int],
    *,
    seed: int = 0,
    occlusion: bool = False,
    carry: bool = False,
    cost: Tensor | None = None,
) -> Lanes:
    """Link the tokens of a clip along its motion.

    Args:
        flow: The clip's flow at any picture size; ``(F - 1, 2, H, W)`` in pixels, or with
            backward flow and cuts.
        grid: Height and width of the tokens.
        seed: Decides which token keeps a link when several move to the same place.
        occlusion: Drop the links of tokens that the forward-backward check calls hidden.
        carry: Keep the part of a motion that is less than a token and add it to the next frame's.
            Without it (the reference) each frame's motion is rounded alone, and what moves by less
            than half a token a frame stays where it is.
        cost: ``(F - 1, height, width)``; of several tokens that move to one place the cheapest
            keeps its link. ``None``: one of them at random.

    Returns:
        Lanes on the device of the flow.

    Raises:
        FlowError: the grid or the cost does not fit, or occlusion is asked for without a backward
            flow.

    Source: Cong et al., FLATTEN, arXiv 2310.05922, section 3.2; the completion to lanes is exact.
    """
    clip = flow if isinstance(flow, ClipFlow) else ClipFlow(flow)
    height, width = grid
    if height < 1 or width < 1:
        raise FlowError(f"grid {grid} must be (height, width) of at least one token")
    frames, cells = clip.frames, height * width
    if cost is not None and cost.shape != (frames - 1, height, width):
        raise FlowError(f"cost is {tuple(cost.shape)}; it must be {(frames - 1, height, width)}")
    motion = token_motion(clip, grid)
    hidden = _sampled(clip.occluded()[:, None].float(), grid)[:, 0] > 0 if occlusion else None
    order = torch.Generator().manual_seed(seed)
    lane_cells = torch.arange(cells, device=motion.device).repeat(frames, 1)
    segment = torch.zeros(frames, cells, dtype=torch.int16, device=motion.device)
    rest = torch.zeros(2, cells, device=motion.device)  # by lane
    for t in range(frames - 1):
        here = lane_cells[t]
        target, left = _targets(motion[t], here, rest if carry else None, grid)
        if hidden is not None:
            target = target.masked_fill(hidden[t].flatten()[here], NONE)
        if t in clip.cuts:
            target = torch.full_like(target, NONE)
        shuffled = torch.randperm(cells, generator=order).to(target.device)
        price = None if cost is None else cost[t].to(target.device).flatten()[here]
        target = keep_one_link(target, cells, shuffled, price)
        lane_cells[t + 1] = complete_links(target, cells)
        ends = target == NONE
        segment[t + 1] = segment[t] + ends
        rest = left.masked_fill(ends, 0.0)
    return Lanes((frames, height, width), lane_cells, segment.mT.contiguous())


def token_motion(flow: ClipFlow, grid: tuple[int, int]) -> Tensor:
    """The clip's motion in tokens, ``(F - 1, 2, n)`` float: not yet rounded.

    Each token takes the flow at its top left pixel (nearest sampling, no averaging); dx is scaled
    by the ratio of the widths, dy by that of the heights.
    """
    height_px, width_px = flow.size
    height, width = grid
    ratio = torch.tensor([width / width_px, height / height_px], device=flow.forward.device)
    return (_sampled(flow.forward, grid) * ratio.view(2, 1, 1)).flatten(2)


def keep_one_link(target: Tensor, cells: int, order: Tensor, cost: Tensor | None = None) -> Tensor:
    """Of the sources that lead to one target keep one, and drop the links of the others.

    Args:
        target: Target cell of each source, ``(n,)``; -1 for none.
        cells: Number of cells.
        order: A permutation of ``n``; the source that comes first in it keeps its link.
        cost: ``(n,)``; a cheaper source wins, ``order`` decides between equal ones.

    Returns:
        ``(n,)`` with no target twice.
    """
    rank = order
    if cost is not None:
        by_order = order.argsort()
        rank = torch.empty_like(order)
        rank[by_order[cost[by_order].argsort(stable=True)]] = torch.arange(
            len(order), device=order.device
        )
    linked = target != NONE
    places = target.clamp_min(0)
    best = torch.full((cells,), len(target), dtype=rank.dtype, device=rank.device)
    best.scatter_reduce_(0, places[linked], rank[linked], "amin")
    return torch.where(linked & (best[places] == rank), target, NONE)


def complete_links(target: Tensor, cells: int) -> Tensor:
    """Complete one-to-one links to a permutation: leftover sources take leftover targets in order.

    Args:
        target: ``(n,)`` with no target twice; -1 for none.
        cells: ``n``.

    Returns:
        ``(n,)``, a permutation that agrees with ``target`` wherever it links.
    """
    free = torch.ones(cells, dtype=torch.bool, device=target.device)
    free[target[target != NONE]] = False
    complete = target.clone()
    complete[target == NONE] = free.nonzero().flatten()
    return complete


def _targets(
    motion: Tensor, here: Tensor, rest: Tensor | None, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Target cell of each lane ``(n,)``, -1 outside, and what rounding left over ``(2, n)``."""
    height, width = grid
    wanted = motion[:, here] if rest is None else motion[:, here] + rest
    whole = wanted.round()
    column = here % width + whole[0].long()
    row = here // width + whole[1].long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, NONE), wanted - whole


def _sampled(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` at the top left pixel of each token, ``(B, C, height, width)``."""
    height_px, width_px = values.shape[-2:]
    rows = (torch.arange(grid[0], device=values.device) * height_px) // grid[0]
    columns = (torch.arange(grid[1], device=values.device) * width_px) // grid[1]
    return values[:, :, rows][:, :, :, columns]
