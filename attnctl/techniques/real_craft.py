"""RealCraft: words of a clip exchanged, the layout kept around an object that is free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.clips.frames import (
    FrameOrder,
    check_frames,
    frame_order,
    frames_of_run,
    mixed_output,
    refuse_joint_frames,
)
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import check_features, for_every_row
from attnctl.editing.paired_rows import with_target_output
from attnctl.editing.unet_maps import grid_of, map_grid
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.kernels import probability_columns
from attnctl.named_words import find_tokens, is_word
from attnctl.ops.cross_frame import SOURCES, gather_frames
from attnctl.ops.lanes import join_frames, split_frames
from attnctl.ops.real_craft import object_cells, relaxed_output, with_own_columns
from attnctl.registry import register
from attnctl.schedule import until
from attnctl.settings import check_number
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where

SEEN = ("own", *SOURCES, "all")


@dataclass(slots=True)
class _State:
    """New words of a run, and where they looked in the steps before this one."""

    positions: list[int]
    is_new: Tensor
    grid: tuple[int, int] | None
    fold: int
    step: int = -1
    past: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    present: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def enter(self, step: int) -> None:
        """At a new step, what was read in the one before it becomes past."""
        if step != self.step:
            for name, seen in self.present.items():
                self.past[name] = seen + self.past[name] if name in self.past else seen
            self.present, self.step = {}, step

    def frames(self, call: AttentionCall, at: Tensor) -> Tensor:
        """Number of the frame of each batch entry, counted over all items."""
        rows = [call.rows[int(place) // call.fold].item for place in at]
        return torch.tensor(rows, device=at.device) * self.fold + at % call.fold


@register("real-craft")
@dataclass(frozen=True)
class RealCraft(Technique):
    """Exchange words of a clip: the layout stays the source's, and the new object has its own form.

    Cross-attention takes the maps that the inversion of the source recorded, but for the new words,
    which have their own. In self-attention tokens outside of the object take the source's map over,
    those of the object are free. Where the object is, the maps of the new words tell, and those
    of the words that they replace, in the steps so far; in the first step nothing is known, and all
    tokens are free. Words are exchanged by position, so source and target prompt must have the same
    number of tokens. All rows attend to other frames; the conditional rows alone take maps over.
    The authors have published no code: layers, steps and masks are reconstructed.

    Attributes:
        features: Queries and keys of an inversion of the clip, recorded at the sites that
            ``where`` selects; None: it does nothing.
        words: New words of the target's prompt, or token positions (BOS is 0), such as ("dog",);
            empty: the source's maps are taken over everywhere.
        cross_until: Cross-attention maps are taken over until this step (int) or fraction of the
            run (float); 0: never.
        self_until: The same for self-attention maps.
        attend_to: Frames whose keys and values self-attention sees: "own", "first", "previous",
            "both" (first and previous), or "all".
        threshold: Share of a word map's maximum in a frame that belongs to the object, in [0, 1].
        mask_grid: Side of the maps that tell the object, in cells; by default a quarter of the
            latents' side, or the next larger one.
        frames: Frames of a clip in a picture model's batch; None: all items are one clip.
        where: Self- and cross-attention.
    """

    reference: ClassVar[str] = "Jin et al., arXiv 2312.12635; reconstructed"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt"
    claims: ClassVar[frozenset[str]] = frozenset({"query", "kv"})

    features: FeatureStore | None = field(default=None, compare=False)
    words: Sequence[str | int] = ()
    cross_until: float | int = 0.8
    self_until: float | int = 0.5
    attend_to: str = "both"
    threshold: float = 0.3
    mask_grid: int | None = None
    frames: int | None = None
    where: Where = field(default=Where("self|cross"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "words", _read_words(self.name, self.words))
        for bound in (self.cross_until, self.self_until):
            until(bound)  # refuses what is no bound
        if self.attend_to not in SEEN:
            raise SettingError(
                f"{self.name}: attend_to={self.attend_to!r}; {nearest(str(self.attend_to), SEEN)}"
            )
        check_number(self.name, "threshold", self.threshold, at_least=0, at_most=1)
        if self.mask_grid is not None:
            check_number(self.name, "mask_grid", self.mask_grid, at_least=1)
        check_frames(self.name, self.frames)

    def settings(self) -> dict[str, Any]:
        """Plain values; of features a description, which cannot build it again."""
        features = None if self.features is None else repr(self.features)
        return super().settings() | {"features": features}

    def needs(self) -> Needs:
        return Needs(couples=True, layout=True, prompts=True)

    def strength_at(self, index: int, total: int | None) -> float:
        is_on = self.attend_to != "own" or any(
            until(bound).strength(index, total) for bound in (self.cross_until, self.self_until)
        )
        if self.features is None or not is_on:
            return 0.0
        return self.steps.strength(index, total)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "acts where self-attention and attention to text are apart"
        check_kinds(self.name, sites, ("self", "cross"), does, "self|cross")
        refuse_joint_frames(self.name, sites, layouts)
        return sites

    def begin(self, run: RunStart) -> _State:
        if self.features is None or not run.sites:
            return _State([], torch.zeros(run.items, 0), None, 1)
        layouts = [run.layouts[site.path] for site in run.sites]
        frames_of_run(self.name, layouts, run.items, self.frames)
        check_features(self.name, self.features, run, [site.path for site in run.sites])
        cross = {site: run.layouts[site.path] for site in run.sites if site.kind == "cross"}
        length = max((x.text.stop for x in cross.values() if x and x.text), default=None)
        found = [
            {p for one in self._tokens(run, item, length) for p in one} for item in range(run.items)
        ]
        positions = sorted(set[int]().union(*found))
        is_new = torch.tensor([[float(p in own) for p in positions] for own in found])
        has_mask = bool(positions) and len(cross) < len(run.sites)
        grid = map_grid(self.name, cross, self.mask_grid) if has_mask else None
        frames = layouts[0].grid[0] if layouts[0] is not None and layouts[0].is_video else 1
        return _State(positions, is_new.view(run.items, -1), grid, frames)

    def _tokens(self, run: RunStart, item: int, length: int | None) -> list[tuple[int, ...]]:
        prompt = None if run.prompts is None else run.prompts[item][0]
        return find_tokens(self.name, "words", tuple(self.words), prompt, length)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        state: _State = call.state
        state.enter(call.step.index)
        if call.site.kind == "cross":
            return self._edit_cross(call, out)
        order = frame_order(call, self.frames)
        if self.attend_to != "own" and order.count > 1:
            seen = self._attend(call, order, (call.query, call.key, call.value), call.mask)
            out = mixed_output(call, out, seen)
        at = call.pick(branch="cond")
        if not len(at) or not self._is_due(self.self_until, call):
            return out
        if state.positions and not state.past:
            return out  # where the object is, no step has told yet
        tensors = (*self._recorded(call, at), call.value[at])
        taken = self._attend(call, order, tensors, call.mask_of(at))
        if state.past:
            taken = relaxed_output(taken, out[at], self._object(call, at))
        return with_target_output(out, at, taken, call.strength, call.heads)

    def _edit_cross(self, call: AttentionCall, out: Tensor) -> Tensor:
        state: _State = call.state
        at = call.pick(branch="cond")
        layout = call.layout
        is_taken = self._is_due(self.cross_until, call)
        is_read = self._is_due(self.self_until, call) and call.pass_.kind == "main"
        is_read &= layout is not None and layout.grid[1:] == state.grid
        if not len(at) or not (is_taken or is_read):
            return out
        query, key = self._recorded(call, at)
        mask, value = call.mask_of(at), call.value[at]
        kept = call.attend(query, key, value, mask) if is_taken else out[at]
        if state.positions:
            positions = torch.tensor(state.positions, device=key.device)
            source = probability_columns(query, key, positions, mask=mask, scale=call.scale)
            own = call.columns(state.positions, at)
            is_new = state.is_new.to(own)[state.frames(call, at) // state.fold]
            if is_read:
                self._gather(call, at, source, own, is_new)
            if is_taken:
                kept = with_own_columns(kept, source, own, value[:, :, positions], is_new)
        if not is_taken:
            return out
        return with_target_output(out, at, kept, call.strength, call.heads)

    def _gather(
        self, call: AttentionCall, at: Tensor, source: Tensor, own: Tensor, is_new: Tensor
    ) -> None:
        """Add up where the words look in each frame, over heads and layers."""
        state: _State = call.state
        main = torch.isin(at, call.pick(branch="cond", kind="main"))
        frames = state.frames(call, at[main])
        assert state.grid is not None  # maps are gathered for it alone
        for name, columns in (("source", source), ("target", own)):
            seen = (columns * is_new[:, None, None]).sum((1, 3)).unflatten(1, state.grid)
            by_frame = torch.zeros(len(frames), *state.grid, device=seen.device, dtype=seen.dtype)
            by_frame = by_frame.index_copy(0, frames, seen[main])
            before = state.present.get(name)
            state.present[name] = by_frame if before is None else before + by_frame

    def _object(self, call: AttentionCall, at: Tensor) -> Tensor:
        """Tokens of the object, for batch entries ``at``: bool ``(at, Q)``."""
        state: _State = call.state
        past = (state.past["source"], state.past["target"])
        cells = object_cells(*past, grid_of(call), self.threshold)
        return cells[state.frames(call, at)]

    def _attend(
        self,
        call: AttentionCall,
        order: FrameOrder,
        tensors: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
    ) -> Tensor:
        """Self-attention of whole clips to the frames that each frame sees."""
        query, key, value = tensors
        if self.attend_to == "own" or order.count == 1:
            return call.attend(query, key, value, mask)
        if mask is not None:
            raise UnsupportedModelError(
                f"{self.name}: {call.site.path} has an attention mask for single frames, which "
                "says nothing of other frames; use attend_to='own', or move the technique that "
                "adds it to other sites with where="
            )
        if self.attend_to == "all":
            joined = [join_frames(tensor, order.count) for tensor in tensors]
            return split_frames(call.attend(*joined), order.count)
        of_these = replace(order, clips=len(query) // order.count)
        seen = [gather_frames(of_these.split(t), self.attend_to) for t in (key, value)]
        return call.attend(query, *(t.transpose(1, 2).flatten(0, 1) for t in seen))

    def _recorded(self, call: AttentionCall, at: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key of the source, for batch entries ``at``."""
        assert self.features is not None  # else its strength is 0
        timestep, path = call.step.timestep, call.site.path
        query, key = (
            for_every_row(self.features.get(timestep, path, what, like=own), own[at])
            for what, own in (("query", call.query), ("key", call.key))
        )
        return query, key

    def _is_due(self, bound: float, call: AttentionCall) -> bool:
        return until(bound).strength(call.step.index, call.step.total) != 0.0


def _read_words(technique: str, value: Any) -> tuple[str | int, ...]:
    """Read words or token positions.

    Raises:
        SettingError: it is neither.
    """
    listed: Any = [value] if isinstance(value, str | int) else value
    if isinstance(listed, Sequence) and all(is_word(one) for one in listed):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return tuple(listed)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    raise SettingError(
        f"{technique}: words={value!r} must be words of the target's prompt or token positions, "
        "such as ['dog'] or [2]"
    )
