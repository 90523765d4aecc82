"""CrossFrameAttention: every frame looks at the keys and values of the first or previous frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Layout, Needs, RunStart
from attnctl.clips.frames import check_frames, frame_order, frames_of_run, refuse_joint_frames
from attnctl.errors import SettingError, nearest
from attnctl.kernels.masks import repeat_heads
from attnctl.ops.cross_frame import SOURCES, gather_frames, share_bias
from attnctl.registry import register
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole


@register("cross-frame-attention")
@dataclass(frozen=True)
class CrossFrameAttention(Technique):
    """Make the frames of a clip share the look of one frame: its keys and values replace theirs.

    The frames of a clip are the items of a picture model's batch, or AnimateDiff's frames. Queries
    stay; branches, clips and added rows never mix. One frame alone is left as it is. With a ramp
    or single heads (``where="...,heads="``), a frame's own keys stay beside the others with the
    weight ``1 - strength``.

    Attributes:
        source: Whose keys and values: ``first`` frame, ``previous`` frame or ``both``.
        frames: Frames of a clip in a picture model's batch; None: all items are one clip.
        keyframes: Numbers of frames (the first is 0), such as (0, 8), that every frame attends to
            in place of ``source``; empty: ``source`` counts.
        where: Self- or joint attention; on joint attention, image keys alone are exchanged.
    """

    reference: ClassVar[str] = "Khachatryan et al., ICCV 2023, arXiv 2303.13439"
    families: ClassVar[str] = "UNet, UNetMotion, PixArt; SD3 and SD3.5, FLUX.1"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    source: str = "first"
    frames: int | None = None
    keyframes: Sequence[int] = ()
    where: Where = field(default=Where("self|joint"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames(self.name, self.frames)
        object.__setattr__(self, "keyframes", _read_keyframes(self.name, self.keyframes))
        if self.source not in SOURCES:
            raise SettingError(
                f"{self.name}: source={self.source!r}; {nearest(str(self.source), SOURCES)}"
            )

    def needs(self) -> Needs:
        return Needs(layout=True, couples=True)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "exchanges keys of image tokens"
        check_kinds(self.name, sites, ("self", "joint"), does, "self|joint")
        refuse_joint_frames(self.name, sites, layouts)
        return sites

    def begin(self, run: RunStart) -> None:
        count = frames_of_run(self.name, list(run.layouts.values()), run.items, self.frames)
        if max(self.keyframes, default=0) >= count:
            raise SettingError(
                f"{self.name}: keyframes={self.keyframes!r}, but a clip of this run has {count} "
                f"frames, 0 to {count - 1}"
            )
        if count == 1:
            run.warn(f"{self.name}: the clip has one frame, which is left as it is")

    def edit_qkv(self, call: AttentionCall) -> None:
        order = frame_order(call, self.frames)
        if order.count == 1:
            return
        heads = call.query.shape[1]
        key, value = (repeat_heads(t, heads) for t in (call.key, call.value))
        seen = self.keyframes or self.source
        others = [gather_frames(order.split(t), seen) for t in (key, value)]
        if call.heads is None and call.strength == 1.0:
            n = order.split(key).shape[3]
            call.key, call.value = (
                _followed_by(order.join(other[..., :n, :], own), _on_batch(other[..., n:, :]))
                for own, other in zip((key, value), others, strict=True)
            )
            _extend_mask(call)
            return
        self._share(call, key, value, [_on_batch(other) for other in others])

    def _share(self, call: AttentionCall, key: Tensor, value: Tensor, others: list[Tensor]) -> None:
        """Put the other frames' keys behind the own ones, with their weight in the logits."""
        shares = torch.zeros(key.shape[1], dtype=key.dtype, device=key.device)
        shares[slice(None) if call.heads is None else list(call.heads)] = call.strength
        image = call.layout.image if call.layout is not None else slice(None)
        bias = share_bias(key.shape[2], others[0].shape[2], shares)
        is_text = torch.ones(key.shape[2], dtype=torch.bool, device=key.device)
        is_text[image] = False
        bias[..., : key.shape[2]].masked_fill_(is_text, 0.0)
        call.key, call.value = _followed_by(key, others[0]), _followed_by(value, others[1])
        _extend_mask(call)
        call.add_bias(bias)


def _read_keyframes(technique: str, value: Any) -> tuple[int, ...]:
    """Read numbers of different frames.

    Raises:
        SettingError: a value is no number of a frame, or stands there twice.
    """
    listed: list[Any] = list(value) if isinstance(value, list | tuple) else [value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if any(not is_whole(one) or one < 0 for one in listed) or len(set(listed)) < len(listed):
        raise SettingError(
            f"{technique}: keyframes={value!r} must be numbers of different frames from 0, such as "
            "(0, 8)"
        )
    return tuple(listed)


def _on_batch(tensor: Tensor) -> Tensor:
    """``(clips, H, F, n, D)`` to ``(B, H, n, D)``."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _followed_by(tensor: Tensor, more: Tensor) -> Tensor:
    return torch.cat([tensor, more], dim=2) if more.shape[2] else tensor


def _extend_mask(call: AttentionCall) -> None:
    """Let keys behind the model's own be masked like the image tokens that they stand for."""
    mask = call.additive_mask()
    extra = call.key.shape[2] - (0 if mask is None else mask.shape[3])
    if mask is None or extra == 0 or call.layout is None:
        return
    image = mask[..., call.layout.image]
    call.mask = torch.cat([mask, *[image] * (extra // image.shape[3])], dim=3)
