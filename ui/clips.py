"""A clip that a visitor drops in: it is looked at before it is decoded, and read within limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnctl.errors import SettingError, VideoError
from attnctl.video import FrameRange, Video, read_video
from attnctl.video.reading import open_container

from .failures import naming
from .settings import Limits

ENDINGS = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp")
_ANIMATIONS = (".gif", ".webp")
# FFmpeg tells containers by their content, and playlists are containers that name other files and
# addresses: whatever a file is called, it is opened as one of these, or not at all.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_SAFELY = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What a file holds.

    Attributes:
        frames: How many.
        width: In pixels.
        height: In pixels.
        seconds: How long it lasts; ``None`` for animated pictures, which are read for it.
        has_audio: Whether there is sound.
    """

    frames: int
    width: int
    height: int
    seconds: float | None = None
    has_audio: bool = False

    def text(self) -> str:
        """One line for people."""
        length = "" if self.seconds is None else f", {self.seconds:.1f} s"
        sound = ", with sound" if self.has_audio else ""
        return f"{self.frames} frames of {self.width} x {self.height}{length}{sound}"


def look_at(file: Path, limits: Limits) -> ClipFacts:
    """Find out what a file holds, without decoding it.

    Raises:
        SettingError: it is no clip, or larger than the limits allow.
    """
    if file.suffix.lower() not in ENDINGS:
        raise SettingError(f"{file.name!r} is not taken; clips end in {', '.join(ENDINGS)}")
    with naming(file):
        is_animation = file.suffix.lower() in _ANIMATIONS
        facts = _animation_facts(file, limits) if is_animation else _video_facts(file, limits)
    _check_sides(facts.width, facts.height, limits)
    if facts.frames > limits.file_frames:
        raise SettingError(
            f"{file.name!r} has more than {limits.file_frames} frames; cut out a part"
        )
    if (facts.seconds or 0) > limits.file_seconds:
        raise SettingError(
            f"{file.name!r} lasts {facts.seconds:.0f} s; at most {limits.file_seconds:.0f} s are"
            " taken; cut out a part"
        )
    return facts


def check_amount(frames: int, width: int, height: int, limits: Limits) -> None:
    """Refuse a part of a clip that is too much for one run.

    Raises:
        SettingError: too many frames, or too many pixels.
    """
    if frames > limits.frames:
        raise SettingError(
            f"{frames} frames; at most {limits.frames} are edited in one run: give a range such as"
            f" 0-{limits.frames}, or a stride"
        )
    _check_sides(width, height, limits)
    most = limits.clip_pixels // (width * height)
    if frames > most:
        raise SettingError(
            f"{frames} frames of {width} x {height} are too much for one run; at most {most} of"
            " this size: give a shorter range or a larger stride, or make the clip smaller"
        )


def read_clip(file: Path, chosen: FrameRange, limits: Limits) -> Video:
    """Decode frames of a file that was looked at.

    Raises:
        VideoError: it is damaged, or has no frame in the range.
        SettingError: it holds more than it said.
    """
    with naming(file):
        video = read_video(file, chosen)
    height, width = video.size
    check_amount(len(video.frames), width, height, limits)
    return video


def _check_sides(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.side_px:
        raise SettingError(
            f"the clip has {width} x {height} pixels; at most {limits.side_px} on each side are"
            " taken: make it smaller"
        )


def _video_facts(file: Path, limits: Limits) -> ClipFacts:
    spans: list[tuple[int, int]] = []
    with open_container(file, _SAFELY) as container:
        if not container.streams.video:
            raise VideoError(f"{str(file)!r} has no picture track, only sound")
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if packet.pts is not None:
                spans.append((packet.pts, packet.pts + (packet.duration or 0)))
            if len(spans) > limits.file_frames:
                break
        if not spans:
            raise VideoError(f"{str(file)!r} holds no frame")
        first, last = min(start for start, _ in spans), max(end for _, end in spans)
        seconds = float((last - first) * stream.time_base)
        has_audio = bool(container.streams.audio)
        return ClipFacts(len(spans), stream.width, stream.height, seconds, has_audio)


def _animation_facts(file: Path, limits: Limits) -> ClipFacts:
    try:
        with Image.open(file, formats=("GIF", "WEBP")) as image:
            _check_sides(image.width, image.height, limits)
            return ClipFacts(getattr(image, "n_frames", 1), image.width, image.height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, SettingError):
            raise
        raise VideoError(f"{str(file)!r} is no animated picture that can be read") from None
