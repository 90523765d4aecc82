"""What an edit of a clip will take, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attnctl.clips.memory import ClipMemory, plan_clip_memory
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
        memory: Of one step of the largest chunk, bytes; ``None`` where it is not known.
        family: Family of the model.
    """

    frames: int
    size: tuple[int, int]
    chunks: int
    largest: int
    evaluations: int
    memory: ClipMemory | None
    family: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        device = None if self.memory is None else self.memory.device
        return {**asdict(self), "device_bytes": device}

    def text(self) -> str:
        """Lines for people."""
        width, height = self.size
        return (
            f"{self.frames} frames at {width} x {height} in {self.chunks} chunk(s) of at most"
            f" {self.largest} frames with their context\n"
            f"{self.evaluations} evaluations of the denoiser, one frame each\n"
            f"{self.memory_text()}"
        )

    def memory_text(self) -> str:
        """What a step takes, in lines for people."""
        if self.memory is None:
            return f"memory of a step: computed for UNets only, not for {self.family}"
        return f"memory of a step, computed:\n{self.memory.table()}"


def plan_video(
    pipe: Any, video: Video, settings: VideoEditSettings, techniques: Sequence[Technique]
) -> VideoPlan:
    """Compute chunks and memory of an edit.

    Args:
        pipe: The pipeline; memory is known for those with a UNet.
        video: The clip.
        settings: With every choice filled in.
        techniques: What will be attached.
    """
    model = find_denoiser(pipe)
    family = find_family(model)
    assert settings.size is not None  # filled in before
    chunks = chunks_of(len(video.frames), settings.chunk)
    largest = max(len(chunk.frames) for chunk in chunks)
    memory = None
    if family.name.startswith("UNet"):
        width, height = (side // pipe.vae_scale_factor for side in settings.size)
        memory = plan_clip_memory(
            model,
            largest,
            (height, width),
            branches=2 if (settings.guidance or 0) > 1 else 1,
            injected_steps=settings.steps if takes_features(settings, techniques) else 0,
        )
    evaluations = evaluations_of(settings, chunks)
    return VideoPlan(
        len(video.frames), settings.size, len(chunks), largest, evaluations, memory, family.name
    )
