"""Edit a clip with a picture model: its frames are the items of one batch, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from attnctl.editing.features import FeatureStore
from attnctl.errors import UnsupportedModelError
from attnctl.families import find_family
from attnctl.flow import ClipFlow, estimate_flow
from attnctl.inversion import decode, invert, refuse_unsupported, sampler_of
from attnctl.inversion.hosts import Call, find_denoiser, run_pipeline, working_latents
from attnctl.technique import Technique
from attnctl.video import Video
from attnctl.video.clip import Frames

from .fitting import default_guidance, size_factor
from .video_chunks import Chunk, ChunkStore, chunks_of, flow_of_chunk
from .video_recorders import recorders_of, takes_features
from .video_settings import NO_FLOW, VideoEditSettings

OnStep = Callable[[int], None]
"""Is told after each evaluation of the denoiser how many frames it moved on; may raise to stop."""

OnChunk = Callable[[int, int, bool], None]
"""Is told which chunk is done, of how many, and whether it had been done before."""


@dataclass(frozen=True, slots=True)
class VideoEdit:
    """What an edit of a clip gave.

    Attributes:
        video: The edited clip, of the size of the source.
        small: Source and edit at the working size, ``(F, h, w, 3)`` uint8.
        flow: Motion of the source at the working size; ``None`` without one.
        settings: With every choice filled in.
        chunks: Chunks of the clip.
        resumed: Chunks that an earlier run had finished.
        report: What the techniques did in the last chunk; ``None`` without them.
    """

    video: Video
    small: tuple[Frames, Frames]
    flow: ClipFlow | None
    settings: VideoEditSettings
    chunks: int
    resumed: int
    report: Any = field(default=None, repr=False)


def edit_video(
    pipe: Any,
    video: Video,
    settings: VideoEditSettings,
    techniques: Sequence[Technique] = (),
    *,
    store: ChunkStore | None = None,
    on_step: OnStep | None = None,
    on_chunk: OnChunk | None = None,
) -> VideoEdit:
    """Edit a clip.

    The frames of a chunk are inverted together, then sampled together with the target prompt.
    Techniques that follow motion (they have ``flow=None``) are given that of the clip, and run in
    the inversion too; those that take over features (``features=None``) are given the inversion's.

    Args:
        pipe: A text-to-image pipeline of a family whose pictures can be inverted.
        video: The clip.
        settings: What to do.
        techniques: Attached while sampling; ``Flatten`` while inverting, too.
        store: Where finished chunks are kept for a run that goes on after this one stopped.
        on_step: Is told how far the run is.
        on_chunk: Is told of finished chunks.

    Raises:
        UnsupportedModelError: the pipeline cannot be inverted, or makes videos itself.
        SettingError: a setting cannot be used; said before anything is computed.
        FlowError: a precomputed flow does not fit the clip.
    """
    check_pipeline(pipe)
    settings = resolve_video(pipe, video, settings)
    assert settings.size is not None  # filled in
    small = resize_frames(video.frames, settings.size)
    flow = motion_of(small, settings.flow)
    parts: list[Frames] = []
    resumed, report = 0, None
    chunks = chunks_of(len(small), settings.chunk)
    for chunk in chunks:
        made = None if store is None else store.load(chunk)
        if made is not None:
            resumed += 1
            _skip(settings, chunk, on_step)
        else:
            made, report = edit_chunk(pipe, small, flow, chunk, settings, techniques, on_step)
            if store is not None:
                store.save(chunk, made)
        parts.append(made)
        if on_chunk is not None:
            on_chunk(chunk.number, len(chunks), len(parts) == resumed)
    edited = np.concatenate(parts)
    height, width = video.size
    full = replace(video, frames=resize_frames(edited, (width, height)))
    return VideoEdit(full, (small, edited), flow, settings, len(chunks), resumed, report)


def check_pipeline(pipe: Any) -> None:
    """Refuse a pipeline that is no picture model that can be inverted."""
    family = find_family(find_denoiser(pipe))
    if hasattr(pipe, "motion_adapter") or "frames" in getattr(pipe, "_callback_tensor_inputs", ()):
        raise UnsupportedModelError(
            f"{type(pipe).__name__} ({family.name}) makes videos itself; video-edit works with a"
            " picture model such as Stable Diffusion, and `attnctl video` runs this one"
        )
    refuse_unsupported(pipe, pictures=True)


def resolve_video(pipe: Any, video: Video, settings: VideoEditSettings) -> VideoEditSettings:
    """Fill in what the settings leave to the model: guidance and working size."""
    height, width = video.size
    guidance = default_guidance(pipe) if settings.guidance is None else settings.guidance
    size = settings.size or working_size(pipe, width, height)
    return replace(settings, guidance=guidance, size=size)


def working_size(pipe: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height of the clip's form, about the model's own area, that the model takes."""
    factor = size_factor(pipe)
    side = int(getattr(pipe, "default_sample_size", 0) or find_denoiser(pipe).config.sample_size)
    side *= int(pipe.vae_scale_factor)
    scale = min(1.0, side / (width * height) ** 0.5)
    return tuple(max(factor, round(n * scale / factor) * factor) for n in (width, height))  # type: ignore[return-value]


def motion_of(frames: Frames, provider: str) -> ClipFlow | None:
    """The motion of a clip at its working size; ``None`` if none is wanted."""
    if provider == NO_FLOW:
        return None
    tensor = torch.from_numpy(frames.copy()).permute(0, 3, 1, 2).float() / 255
    is_file = Path(provider).exists() and Path(provider).suffix != ""
    return estimate_flow(tensor, Path(provider) if is_file or Path(provider).is_dir() else provider)


def resize_frames(frames: Frames, size: tuple[int, int]) -> Frames:
    """Frames ``(F, h, w, 3)`` at another width and height."""
    if frames.shape[2::-1][:2] == size:
        return frames
    sized = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        for frame in frames
    ]
    return np.stack(sized)


def edit_chunk(
    pipe: Any,
    small: Frames,
    flow: ClipFlow | None,
    chunk: Chunk,
    settings: VideoEditSettings,
    techniques: Sequence[Technique],
    on_step: OnStep | None = None,
) -> tuple[Frames, Any]:
    """Invert and edit the frames of one chunk: the kept ones ``(n, h, w, 3)``, and the report."""
    assert settings.size is not None  # filled in before
    pictures = [Image.fromarray(small[t]) for t in chunk.frames]
    motion = None if flow is None else flow_of_chunk(flow, chunk)
    store = FeatureStore(offload=True) if takes_features(settings, techniques) else None
    moving = [_with_motion(technique, motion) for technique in techniques]
    inverting = [technique for technique in moving if _has_field(technique, "flow")]
    inversion = invert(
        pipe,
        pictures,
        settings.source,
        method="auto",
        steps=settings.steps,
        refinements=settings.refinements,
        techniques=[*inverting, *recorders_of(pipe, settings, techniques, store)],
        offload=True,
        on_evaluation=lambda done, total: on_step(len(pictures)) if on_step else None,
    )
    sampling = [_with_features(technique, store, settings.inject) for technique in moving]
    options: dict[str, Any] = {}
    if on_step is not None:
        options["callback_on_step_end"] = _callback(on_step, len(pictures))
    call = Call(
        [settings.target] * len(pictures),
        settings.size,
        settings.steps,
        settings.guidance or 0.0,
        settings.negative,
        options,
    )
    start = working_latents(pipe, inversion.noise)
    latents, report = run_pipeline(pipe, sampler_of(pipe), start, call, sampling)
    images = [decode(pipe, latents[i : i + 1], settings.size)[0] for i in range(len(latents))]
    return np.stack([np.asarray(image) for image in images[chunk.context :]]), report


def evaluations_of(settings: VideoEditSettings, chunks: Sequence[Chunk]) -> int:
    """Evaluations of the denoiser, counted in frames: inversion and edit."""
    return sum(settings.evaluations * len(chunk.frames) for chunk in chunks)


def _skip(settings: VideoEditSettings, chunk: Chunk, on_step: OnStep | None) -> None:
    if on_step is not None:
        on_step(settings.evaluations * len(chunk.frames))


def _has_field(technique: Technique, name: str) -> bool:
    return any(f.name == name for f in fields(technique))


def _with_motion(technique: Technique, flow: ClipFlow | None) -> Technique:
    if not _has_field(technique, "flow") or getattr(technique, "flow") is not None:  # noqa: B009
        return technique
    return replace(cast(Any, technique), flow=flow)


def _with_features(technique: Technique, store: FeatureStore | None, inject: float) -> Technique:
    if store is None or not _has_field(technique, "features"):
        return technique
    until = {} if _has_own(technique, "inject_until") else {"inject_until": inject}
    return replace(cast(Any, technique), features=store, **until)


def _has_own(technique: Technique, name: str) -> bool:
    """Whether a setting differs from its default; true if there is no such setting."""
    defaults = [f.default for f in fields(technique) if f.name == name]
    return not defaults or getattr(technique, name) != defaults[0]


def _callback(on_step: OnStep, count: int) -> Callable[..., dict[str, Any]]:
    def after_step(_pipe: Any, _index: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step(count)
        return values

    return after_step
