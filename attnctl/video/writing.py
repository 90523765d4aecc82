"""Write clips as MP4 (H.264) or GIF, whole files only, with their recipe in the metadata."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from attnctl.errors import VideoError
from attnctl.files import new_file
from attnctl.imaging import versions, without_secrets
from attnctl.video.audio import add_audio_stream, copy_audio
from attnctl.video.clip import Frames, Video
from attnctl.video.pictures import ANIMATIONS
from attnctl.video.reading import open_container

FORMATS = (".mp4", ".gif")
QUALITY = {
    "crf": "16",
    "preset": "medium",
    "threads": "1",
    "x264-params": "rc-lookahead=0:mbtree=0:bframes=0:weightp=0:scenecut=0:keyint=48",
}
"""H.264: visually lossless. Threads and looking ahead are off: with them the same small frames now
and then gave other bytes."""

RECORD_KEY = "attnctl"


def write_video(
    path: str | os.PathLike[str],
    video: Video,
    *,
    record: Mapping[str, Any] | None = None,
    audio: Video | None = None,
) -> tuple[Path, tuple[str, ...]]:
    """Write a clip; the file appears under its name only when it is whole.

    Args:
        path: ``.mp4`` (H.264, plays everywhere) or ``.gif`` (no sound, at most 50 frames a second,
            256 colours a frame).
        video: What to write. H.264 needs even sides: an odd one repeats its last row or column.
        record: Plain values for the metadata, such as the recipe; secrets are blotted out.
        audio: The clip as it was read: its sound is copied. ``None`` for silence.

    Returns:
        The path, and what was converted on the way, in words.

    Raises:
        VideoError: the name has another ending, or PyAV is missing.
        OSError: the file cannot be written; nothing is left under ``path``.
    """
    target = Path(path)
    kind = target.suffix.lower()
    if kind not in FORMATS:
        raise VideoError(f"{str(target)!r} must end in {' or '.join(FORMATS)}")
    text = "" if record is None else _record_text(record)
    with new_file(target) as file:
        notes = (
            _write_gif(file, video, text)
            if kind == ".gif"
            else _write_mp4(file, video, text, audio)
        )
    return target, notes


def read_video_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read back the record that :func:`write_video` put into a file.

    Raises:
        VideoError: there is none, or the file cannot be read.
    """
    source = Path(path)
    if not source.is_file():
        raise VideoError(f"there is no video file {str(path)!r}")
    if source.suffix.lower() in ANIMATIONS:
        with Image.open(source) as image:
            comment = image.info.get("comment", b"")
            text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment
    else:
        with open_container(source) as container:
            text = container.metadata.get("comment", "")
    try:
        found = json.loads(text)[RECORD_KEY]
    except (ValueError, TypeError, KeyError):
        raise VideoError(f"{str(path)!r} carries no attnctl record") from None
    return dict(found)


def _record_text(record: Mapping[str, Any]) -> str:
    clean = without_secrets({**record, "versions": versions()})
    return json.dumps({RECORD_KEY: clean}, ensure_ascii=False, allow_nan=False)


def _write_mp4(file: BinaryIO, video: Video, text: str, audio: Video | None) -> tuple[str, ...]:
    if find_spec("av") is None:
        raise VideoError("MP4 files need PyAV; pip install 'attnctl[video]', or write a .gif")
    import av

    av.logging.set_level(None)  # any level would make decoder threads wait for the GIL: deadlock
    notes: list[str] = []
    frames = _even(video.frames)
    if frames.shape != video.frames.shape:
        height, width = video.size
        notes.append(f"H.264 needs even sides: {width} x {height} got one more row or column")
    # In memory first: FFmpeg has its own words for an error of the disk, Python the right ones.
    encoded = BytesIO()
    with av.open(encoded, "w", format="mp4") as output:
        if text:
            output.metadata["comment"] = text
        stream = _add_picture_stream(output, frames, video.rate)
        sound: Iterator[Any] = iter(())
        if audio is not None and audio.source is not None and audio.has_audio:
            track, note = add_audio_stream(audio.source, output)
            notes += [note] if note else []
            sound = copy_audio(audio.source, track, audio.start, video.seconds)
        _encode(output, stream, frames, video.rate, sound)
    file.write(encoded.getbuffer())
    return tuple(notes)


def _add_picture_stream(output: Any, frames: Frames, rate: Fraction) -> Any:
    stream = output.add_stream("libx264", rate=rate, options=dict(QUALITY))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.time_base = 1 / rate
    _tag_colours(stream.codec_context)
    return stream


def _encode(output: Any, stream: Any, frames: Frames, rate: Fraction, sound: Iterator[Any]) -> None:
    """Encode the frames, and mux the sound beside the frames that it belongs to."""
    import av

    waiting = next(sound, None)
    for index, picture in enumerate(frames):
        frame: Any = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts, frame.time_base = index, 1 / rate
        output.mux(stream.encode(frame))
        while waiting is not None and waiting.pts * waiting.time_base <= index / rate:
            output.mux(waiting)
            waiting = next(sound, None)
    output.mux(stream.encode(None))
    while waiting is not None:
        output.mux(waiting)
        waiting = next(sound, None)


def _tag_colours(context: Any) -> None:
    """Say that the numbers are BT.709, limited range: what players assume of larger pictures."""
    context.colorspace, context.color_range = 1, 1
    context.color_primaries = context.color_trc = 1


def _even(frames: Frames) -> Frames:
    height, width = frames.shape[1:3]
    if height % 2 == width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_gif(file: BinaryIO, video: Video, text: str) -> tuple[str, ...]:
    delays = gif_delays(len(video.frames), video.rate)
    pictures = [Image.fromarray(frame) for frame in video.frames]
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=delays,
        loop=0,
        comment=text.encode("utf-8"),
    )
    shown = len(video.frames) * 1000 / sum(delays)
    exact = abs(shown - float(video.rate)) < 0.05 * float(video.rate)
    return () if exact else (f"GIF counts in 10 ms: {video.rate} became {shown:.2f} frames/s",)


def gif_delays(count: int, rate: Fraction) -> Sequence[int]:
    """How long each frame of a GIF lasts, in ms: multiples of 10 that add up to the exact time."""
    ends = [max(round(100 * (i + 1) / rate), 2 * (i + 1)) for i in range(count)]
    return [10 * (stop - start) for start, stop in zip([0, *ends], ends, strict=False)]
