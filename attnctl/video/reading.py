"""Read clips from video files by PyAV, which is FFmpeg."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from attnctl.errors import VideoError
from attnctl.imaging import MAX_PIXELS
from attnctl.video.clip import FrameRange, Frames, Video, check_size
from attnctl.video.pictures import ANIMATIONS, read_animation, read_folder
from attnctl.video.timing import is_constant, nominal_rate, resample_times


def read_video(
    path: str | os.PathLike[str],
    frames: FrameRange | None = None,
    *,
    rate: Fraction | None = None,
) -> Video:
    """Read frames of a video file, an animated picture, or a folder of frames.

    Args:
        path: A file in any container that FFmpeg knows, GIF or WebP, or a folder of pictures.
        frames: Which frames, counted at the file's constant rate; all of them by default.
        rate: Frames a second to resample to; the file's own by default. For a folder: its rate.

    Returns:
        Frames at a constant rate. A file with a variable rate is resampled to its mean rate, which
        is noted; a stride divides the rate, so that the clip takes as long as before.

    Raises:
        VideoError: no such file, not a video, damaged, no frame in the range, or too large.
    """
    source, chosen = Path(path), frames or FrameRange()
    if rate is not None and rate <= 0:
        raise VideoError(f"rate {rate} must be above 0 frames a second")
    if source.is_dir():
        return read_folder(source, chosen, rate)
    if not source.is_file():
        raise VideoError(f"there is no video file or folder {str(path)!r}")
    if source.suffix.lower() in ANIMATIONS:
        animation = read_animation(source, chosen, rate)
        if animation is None:
            raise VideoError(f"{str(path)!r} is a single picture; give a video, or use edit")
        return animation
    with open_container(source) as container:
        return _read_stream(container, source, chosen, rate)


@contextmanager
def open_container(source: Path, options: Mapping[str, str] | None = None) -> Generator[Any]:
    """Open a file for reading, and tell FFmpeg's complaints in words.

    Args:
        source: The file.
        options: FFmpeg's own, such as which containers it may be.

    Raises:
        VideoError: PyAV is missing, or the file is damaged or no video.
    """
    if find_spec("av") is None:
        raise VideoError("video files need PyAV; pip install 'attnctl[video]', or give a folder")
    import av
    from av.error import FFmpegError

    av.logging.set_level(None)  # any level would make decoder threads wait for the GIL: deadlock
    try:
        with av.open(str(source), options=dict(options or {})) as container:
            yield container
    except FFmpegError as error:
        raise VideoError(
            f"{str(source)!r} cannot be read: {error.strerror or error}; it is no video, or it is"
            " damaged or cut off"
        ) from None


def _read_stream(container: Any, source: Path, chosen: FrameRange, rate: Fraction | None) -> Video:
    if not container.streams.video:
        raise VideoError(f"{str(source)!r} has no picture track, only sound")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(
            f"{str(source)!r} is {stream.width} x {stream.height}; at most {MAX_PIXELS:,} pixels"
        )
    stamps, last = _stamps(container, stream, source)
    times = [stamp * stream.time_base for stamp in stamps]
    full, order, notes = _frame_order(stream, times, last, rate)
    picked = [order[i] for i in chosen.of(len(order), str(source))]
    check_size(len(picked), stream.height, stream.width, str(source))
    pictures = _decode(container, stream, [stamps[i] for i in picked], source)
    start = times[0] + chosen.start / full
    has_audio = bool(container.streams.audio)
    return Video(pictures, full / chosen.stride, source, start, has_audio, notes)


def _stamps(container: Any, stream: Any, source: Path) -> tuple[list[int], Fraction]:
    """Time stamps of all frames, in order, and how long the last one lasts in seconds."""
    packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
    if not packets:
        raise VideoError(f"{str(source)!r} holds no frame")
    if any(packet.is_corrupt for packet in packets):
        raise VideoError(f"{str(source)!r} is damaged; convert it again from its source")
    packets.sort(key=lambda packet: packet.pts)
    stamps = [int(packet.pts) for packet in packets]
    last = packets[-1].duration or (stamps[-1] - stamps[-2] if len(stamps) > 1 else 0)
    return stamps, Fraction(last) * stream.time_base


def _frame_order(
    stream: Any, times: list[Fraction], last: Fraction, rate: Fraction | None
) -> tuple[Fraction, list[int], tuple[str, ...]]:
    """Rate of the clip, the file's frame for each of its frames, and what there is to tell."""
    for known in (stream.guessed_rate, stream.base_rate, stream.average_rate):
        own = Fraction(known) if known else None
        if own and own > 0 and is_constant(times, own, stream.time_base):
            if rate in (None, own):
                return own, list(range(len(times))), ()
            break
    full = rate or nominal_rate(times, last)
    order = resample_times(times, last, full)
    kind = "frame rate" if rate else "variable frame rate"
    return full, order, (f"{kind}: {len(times)} frames resampled to {len(order)} at {full}",)


def _decode(container: Any, stream: Any, wanted: list[int], source: Path) -> Frames:
    """Decode the frames with these time stamps, which never decrease."""
    places: dict[int, list[int]] = {}
    for place, stamp in enumerate(wanted):
        places.setdefault(stamp, []).append(place)
    container.seek(0)
    stream.thread_type = "AUTO"
    frames: Frames | None = None
    for frame in container.decode(stream):
        for place in places.pop(frame.pts, ()):
            picture = _upright(frame)
            if frames is None:
                frames = np.empty((len(wanted), *picture.shape), np.uint8)
            if picture.shape != frames.shape[1:]:
                raise VideoError(f"{str(source)!r} changes its size; convert it to one size")
            frames[place] = picture
        if not places:
            break
    if places or frames is None:
        raise VideoError(
            f"{str(source)!r} is damaged: {sum(map(len, places.values()))} of {len(wanted)} frames"
            " cannot be decoded; convert it again, or take a range of frames before the damage"
        )
    return frames


def _upright(frame: Any) -> Frames:
    turns = round(float(getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
