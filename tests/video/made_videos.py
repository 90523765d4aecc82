"""Test videos made by FFmpeg's own sources through PyAV: no file is kept in the repository."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

FILM = Fraction(24000, 1001)


def source_frames(description: str) -> Iterator[Any]:
    """Frames of a lavfi source, such as ``testsrc2=size=101x67:rate=24000/1001:duration=2``."""
    with av.open(description, format="lavfi") as container:
        yield from container.decode(0)


def make_video(
    path: Path,
    *,
    size: tuple[int, int] = (102, 66),
    rate: Fraction = FILM,
    seconds: int = 2,
    source: str = "testsrc2",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: str | None = "aac",
    stamps: Sequence[int] | None = None,
) -> Path:
    """Write a video of this width and height; ``stamps`` are milliseconds of a variable rate."""
    text = f"{source}=size={size[0]}x{size[1]}:rate={rate}"
    text += f":duration={seconds},format=rgb24" if source == "testsrc2" else ""
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.options = {"preset": "ultrafast", "deadline": "realtime"}
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        track: Any = output.add_stream(sound, rate=44100) if sound else None
        count = len(stamps) if stamps is not None else round(seconds * rate)
        for i, frame in zip(range(count), source_frames(text), strict=False):
            frame.pts = i if stamps is None else stamps[i]
            frame.time_base = 1 / rate if stamps is None else Fraction(1, 1000)
            output.mux(stream.encode(frame.reformat(format=pixels)))
        output.mux(stream.encode(None))
        if track is not None:
            for packet in beeps(track, seconds):
                output.mux(packet)
    return path


def beeps(track: Any, seconds: int) -> Iterator[Any]:
    """A tone, encoded."""
    resampler = av.AudioResampler(format=track.format.name, layout="stereo", rate=44100)
    with av.open(f"sine=frequency=440:sample_rate=44100:duration={seconds}", format="lavfi") as c:
        for frame in c.decode(0):
            for part in resampler.resample(frame):
                yield from track.encode(part)
    yield from track.encode(None)


def audio_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(audio=0) if p.pts is not None]


def picture_stream(path: Path) -> dict[str, Any]:
    """What the container says about its picture track."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            "rate": stream.average_rate,
            "frames": sum(1 for p in container.demux(stream) if p.pts is not None),
            "size": (stream.width, stream.height),
            "codec": stream.codec_context.name,
            "pixels": stream.pix_fmt,
        }


def coloured_frames(count: int, height: int = 24, width: int = 32) -> np.ndarray:
    """Frames that can be told apart: each has its own shade, ``(F, H, W, 3)`` uint8."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i] = (20 + 200 * i // max(1, count - 1), 120, 200 - 150 * i // max(1, count - 1))
    return frames
