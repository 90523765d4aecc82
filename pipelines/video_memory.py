"""What an edit of a clip will take, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attnctl.clip_memory import ClipMemory, plan_clip_memory
from attnctl.errors import UnsupportedModelError
from attnctl.families import find_family
from attnctl.inversion.hosts import find_denoiser
from attnctl.technique import Technique
from attnctl.video import Video

from .video_chunks import chunks_of
from .video_edit import evaluations_of
from .video_recorders import takes_features
from .video_settings import VideoEditSettings


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What a run will do and take.

    Attributes:
        frames: Of the clip.
        size: Working width and height in pixels.
        chunks: Chunks of the clip.
        largest: Frames of the largest chunk, its context included.
        evaluations: Evaluations of the denoiser, counted in frames.
        memory: Of one step of the largest chunk, bytes.
    """

    frames: int
    size: tuple[int, int]
    chunks: int
    largest: int
    evaluations: int
    memory: ClipMemory

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "device_bytes": self.memory.device}

    def text(self) -> str:
        """Lines for people."""
        width, height = self.size
        return (
            f"{self.frames} frames at {width} x {height} in {self.chunks} chunk(s) of at most"
            f" {self.largest} frames with their context\n"
            f"{self.evaluations} evaluations of the denoiser, one frame each\n"
            f"memory of a step, computed:\n{self.memory.table()}"
        )


def plan_video(
    pipe: Any, video: Video, settings: VideoEditSettings, techniques: Sequence[Technique]
) -> VideoPlan:
    """Compute chunks and memory of an edit.

    Args:
        pipe: A pipeline with a UNet.
        video: The clip.
        settings: With every choice filled in.
        techniques: What will be attached.

    Raises:
        UnsupportedModelError: the memory of this family is not known.
    """
    model = find_denoiser(pipe)
    family = find_family(model)
    if not family.name.startswith("UNet"):
        raise UnsupportedModelError(
            f"the memory of {family.name} is computed for UNets only; leave --plan out"
        )
    assert settings.size is not None  # filled in before
    chunks = chunks_of(len(video.frames), settings.chunk)
    width, height = (side // pipe.vae_scale_factor for side in settings.size)
    injected = takes_features(settings, techniques)
    memory = plan_clip_memory(
        model,
        max(len(chunk.frames) for chunk in chunks),
        (height, width),
        branches=2 if (settings.guidance or 0) > 1 else 1,
        injected_steps=settings.steps if injected else 0,
    )
    return VideoPlan(
        len(video.frames),
        settings.size,
        len(chunks),
        max(len(chunk.frames) for chunk in chunks),
        evaluations_of(settings, chunks),
        memory,
    )
