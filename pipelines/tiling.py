"""How a long clip is laid out in tiles, and which pipelines can make one."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.inversion.hosts import find_denoiser
from attnctl.ops.ditctrl import Blend, tile_prompts, tile_starts
from attnctl.sites import model_config
from attnctl.windows import is_whole

from .text_to_video import check_frame_count

PIPELINES = ("CogVideoXPipeline", "WanPipeline", "AnimateDiffPipeline")
"""Pipelines that long clips are made with."""

OVERLAP = 9 / 13
"""Share of a tile that it has in common with the next, as the authors recommend it."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a long clip is laid out in tiles.

    Attributes:
        overlap: Latent frames that neighbours have in common, from 0; ``None``: nine thirteenths of
            a tile. A model that compresses time has fewer latent frames than the clip has frames.
        transitions: Tiles between two prompts that blend them, from 0.
        longer_middle: Further tiles of each prompt that is neither the first nor the last, from 0.
    """

    overlap: int | None = None
    transitions: int = 2
    longer_middle: int = 0

    def __post_init__(self) -> None:
        for name in ("overlap", "transitions", "longer_middle"):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and value >= 0):
                raise SettingError(f"{name}={value!r} must be a whole number from 0")

    def overlap_of(self, length: int) -> int:
        """The overlap of tiles of ``length`` latent frames.

        Raises:
            SettingError: tiles would not advance.
        """
        if self.overlap is None:
            return min(length - 1, round(OVERLAP * length))
        if self.overlap >= length:
            raise SettingError(
                f"overlap={self.overlap} must be less than the {length} latent frames of a tile; "
                f"take 0 to {length - 1}, or longer tiles with frames="
            )
        return self.overlap


@dataclass(frozen=True, slots=True)
class LongPlan:
    """Tiles of one long clip.

    Attributes:
        tiles: Prompts of each tile.
        starts: First latent frame of each tile.
        length: Latent frames of a tile.
        tile_frames: Frames of a tile.
    """

    tiles: tuple[Blend, ...]
    starts: tuple[int, ...]
    length: int
    tile_frames: int

    @property
    def latent_frames(self) -> int:
        """Latent frames of the clip."""
        return self.starts[-1] + self.length

    @property
    def items(self) -> tuple[int, ...]:
        """Tiles in the order of the batch: each pair of neighbours, the earlier one first."""
        pairs = pairwise(range(len(self.tiles)))
        return tuple(tile for pair in pairs for tile in pair) or (0,)


def check_long_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that long clips are not made with.

    Raises:
        UnsupportedModelError: it is none of :data:`PIPELINES`, or changes the latents of a clip in
            a way of its own.
    """
    name = type(pipe).__name__
    if name not in PIPELINES:
        raise UnsupportedModelError(
            f"{name} cannot make a long clip of several prompts; take {', '.join(PIPELINES)}, or "
            "leave the further prompts out"
        )
    for feature in ("free_init_enabled", "free_noise_enabled"):
        if getattr(pipe, feature, False):
            way = feature.removesuffix("_enabled")
            raise UnsupportedModelError(
                f"{name} has {way} switched on, which lays out the latents of a clip itself; call "
                f"pipe.disable_{way}()"
            )


def plan_long_video(
    pipe: Any, prompts: int, tiling: Tiling | None = None, frames: int | None = None
) -> LongPlan:
    """Lay out a long clip.

    Args:
        pipe: One of :data:`PIPELINES`.
        prompts: How many, from 1.
        tiling: How tiles overlap.
        frames: Frames of a tile; what the pipeline makes by default otherwise.

    Raises:
        UnsupportedModelError: the pipeline makes no long clips.
        SettingError: tiles of so many frames cannot be made, or would not advance.
    """
    check_long_pipeline(pipe)
    tiling = tiling or Tiling()
    config = model_config(find_denoiser(pipe))
    if frames is None:
        default = inspect.signature(pipe.__call__).parameters["num_frames"].default
        frames = int(default or config["sample_frames"])
    check_frame_count(pipe, frames)
    compression = int(getattr(pipe, "vae_scale_factor_temporal", 1) or 1)
    length = (frames - 1) // compression + 1
    patch = config.get("patch_size_t") or 1
    if length % patch:
        whole = length + patch - length % patch
        raise SettingError(
            f"{frames} frames are {length} latent frames, and this model joins {patch} of them; "
            f"take tiles of {(whole - 1) * compression + 1} frames"
        )
    tiles = tile_prompts(prompts, tiling.transitions, tiling.longer_middle)
    starts = tile_starts(len(tiles), length, tiling.overlap_of(length))
    return LongPlan(tiles, starts, length, frames)
