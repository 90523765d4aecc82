"""How the frames of clips lie in the tensors of an attention call.

A picture model takes the frames of a clip as items of its batch; AnimateDiff folds them into the
batch axis beside the rows; video transformers have them on the token axis, frames slowest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout
from attnctl.engine.roles import Rows
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.sites import Site
from attnctl.windows import is_whole


@dataclass(frozen=True, slots=True)
class FrameOrder:
    """How frames lie in one attention call.

    Attributes:
        clips: Clips in the call, one for each guidance branch and kind of row.
        count: Frames of a clip.
        grid: Height and width of the image tokens of a frame.
        image: Image tokens on the token axis; of all frames if they lie there.
        on_tokens: Frames lie on the token axis, not on the batch axis.
    """

    clips: int
    count: int
    grid: tuple[int, int]
    image: slice
    on_tokens: bool

    def split(self, tensor: Tensor) -> Tensor:
        """Take the image tokens apart: ``(B, H, tokens, D)`` to ``(clips, H, F, n, D)``."""
        image = tensor[:, :, self.image]
        if self.on_tokens:
            return image.unflatten(2, (self.count, -1))
        return image.unflatten(0, (self.clips, self.count)).transpose(1, 2)

    def join(self, tensor: Tensor, whole: Tensor) -> Tensor:
        """Put image tokens ``(clips, H, F, n, D)`` into their places in a copy of ``whole``."""
        if self.on_tokens:
            image = tensor.flatten(2, 3)
        else:
            image = tensor.transpose(1, 2).flatten(0, 1)
        if image.shape[2] == whole.shape[2]:
            return image.to(whole)
        first, last = whole[:, :, : self.image.start], whole[:, :, self.image.stop :]
        return torch.cat([first, image.to(whole), last], dim=2)


def refuse_joint_frames(
    technique: str, sites: Sequence[Site], layouts: Mapping[Site, Layout | None]
) -> None:
    """Refuse sites where no frame has keys and maps of its own.

    Raises:
        UnsupportedModelError: a site attends over all frames of a clip at once.
    """
    for site in sites:
        layout = layouts[site]
        if layout is not None and layout.is_video and layout.fold == "rows":
            raise UnsupportedModelError(
                f"{technique}: {site.path} attends over all frames at once, so no frame has keys "
                "and maps of its own; use a picture model or AnimateDiff"
            )


def frame_order(call: AttentionCall, frames: int | None) -> FrameOrder:
    """Find how frames lie in a call.

    Args:
        call: The call, at a site whose layout is known.
        frames: Frames of a clip where they are items of the batch; ``None``: all items.

    Raises:
        UnsupportedModelError: the layout is unknown, or the forward lacks some frames of a clip.
    """
    layout = call.layout
    if layout is None or layout.fold == "positions":
        raise UnsupportedModelError(f"how frames lie at {call.site.path} is unknown")
    count, height, width = layout.grid
    batch = call.query.shape[0]
    if layout.is_video and layout.fold == "rows":
        return FrameOrder(batch, count, (height, width), layout.image, True)
    if not layout.is_video:
        count = _frames_of_rows(call.rows, frames, call.site.path)
    return FrameOrder(batch // count, count, (height, width), layout.image, False)


def _frames_of_rows(rows: Rows, frames: int | None, path: str) -> int:
    """Frames of a clip whose frames are items; each clip must lie in the batch in one piece."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    places: dict[tuple[str, str, str], list[int]] = {}
    for place, row in enumerate(rows):
        key = (row.branch, row.kind, row.owner)
        groups.setdefault(key, []).append(row.item)
        places.setdefault(key, []).append(place)
    items = len(next(iter(groups.values())))
    count = items if frames is None else frames
    is_whole_clip = all(found == list(range(items)) for found in groups.values())
    is_in_one_piece = all(at == list(range(at[0], at[0] + items)) for at in places.values())
    if not is_whole_clip or not is_in_one_piece or items % count:
        raise UnsupportedModelError(
            f"the forward at {path} has {len(rows)} rows that are no whole clips of {count} frames"
        )
    return count


def frames_of_run(
    technique: str, layouts: Sequence[Layout | None], items: int, frames: int | None
) -> int:
    """Frames of a clip in a run, checked before its first step.

    Args:
        technique: Its name, for messages.
        layouts: Layouts of the sites where it acts.
        items: Items of the run.
        frames: Frames of a clip where they are items of the batch; ``None``: all items.

    Raises:
        SettingError: the items are no whole number of clips, or the model says otherwise.
        UnsupportedModelError: a layout is unknown.
    """
    known = [layout for layout in layouts if layout is not None]
    if not known or len(known) != len(layouts):
        raise UnsupportedModelError(f"{technique}: how the tokens of its sites lie is unknown")
    if known[0].is_video:
        count = known[0].grid[0]
        if frames is not None and frames != count:
            raise SettingError(
                f"{technique}: frames={frames}, but this model runs {count} frames a clip (latent "
                "frames, where it compresses time); leave frames= out, it is for picture models"
            )
        return count
    if frames is not None and items % frames:
        raise SettingError(
            f"{technique}: frames={frames}, but the batch has {items} items, which is no whole "
            "number of clips; give the pipeline all frames of each clip, in order"
        )
    return items if frames is None else frames


def check_frames(technique: str, frames: Any) -> None:
    """Refuse a number of frames that is neither ``None`` nor a whole number from 1.

    Raises:
        SettingError: naming the technique and the value.
    """
    if frames is not None and (not is_whole(frames) or frames < 1):
        raise SettingError(
            f"{technique}: frames={frames!r} must be a whole number of frames from 1, or None: "
            "all items of the batch are one clip"
        )


def mixed_output(call: AttentionCall, own: Tensor, edited: Tensor) -> Tensor:
    """The edited tensor, by the strength of the step and on the selected heads alone."""
    if call.heads is None and call.strength == 1.0:
        return edited
    weights = torch.zeros(own.shape[1], dtype=own.dtype, device=own.device)
    weights[slice(None) if call.heads is None else list(call.heads)] = call.strength
    return torch.lerp(own, edited, weights.view(1, -1, 1, 1))
