"""The sound of a clip: copied from its source, packet by packet."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from attnctl.video.reading import open_container

MP4_CODECS = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})
"""Sound that an MP4 file holds as it is; other sound is encoded as AAC."""


def copy_audio(source: Path, stream: Any, start: Fraction, seconds: Fraction) -> Iterator[Any]:
    """Packets of a source's first sound track between two times, ready to be muxed.

    Args:
        source: File with the sound.
        stream: Of an output container, from :func:`add_audio_stream`.
        start: First moment to copy, in seconds of the source.
        seconds: How much to copy.
    """
    with open_container(source) as container:
        track = container.streams.audio[0]
        if track.codec_context.name in MP4_CODECS:
            yield from _copied(container, track, stream, start, seconds)
        else:
            yield from _encoded(container, track, stream, start, seconds)


def add_audio_stream(source: Path, output: Any) -> tuple[Any, str]:
    """Add a stream for a source's sound; also say in words if it has to be encoded again."""
    with open_container(source) as container:
        track = container.streams.audio[0]
        name = track.codec_context.name
        if name in MP4_CODECS:
            return output.add_stream_from_template(track), ""
        stream = output.add_stream("aac", rate=track.codec_context.sample_rate)
        return stream, f"MP4 cannot hold {name}: sound was encoded as AAC"


def _copied(
    container: Any, track: Any, stream: Any, start: Fraction, seconds: Fraction
) -> Iterator[Any]:
    offset = round(start / track.time_base)
    for packet in container.demux(track):
        if packet.pts is None:
            continue
        time = packet.pts * track.time_base - start
        # One packet from before the start is kept: decoders need it to begin cleanly.
        if time + 2 * (packet.duration or 0) * track.time_base <= 0:
            continue
        if time >= seconds:
            break
        packet.pts -= offset
        packet.dts = packet.pts
        packet.stream = stream
        yield packet


def _encoded(
    container: Any, track: Any, stream: Any, start: Fraction, seconds: Fraction
) -> Iterator[Any]:
    import av

    context = track.codec_context
    resampler = av.AudioResampler(format="fltp", layout=context.layout, rate=context.sample_rate)
    samples = 0
    for frame in container.decode(track):
        time = frame.pts * frame.time_base - start
        if time + Fraction(frame.samples, frame.sample_rate) <= 0:
            continue
        if time >= seconds:
            break
        for part in resampler.resample(frame):
            part.pts, part.time_base = samples, Fraction(1, part.sample_rate)
            samples += part.samples
            yield from stream.encode(part)
    yield from stream.encode(None)
