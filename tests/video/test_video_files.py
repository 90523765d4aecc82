"""Video files go in and come out: exact rates, ranges, sound, metadata."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.video import FrameRange, Video, read_video, read_video_record, write_video
from tests.video.made_videos import (
    FILM,
    audio_packets,
    coloured_frames,
    make_video,
    picture_stream,
    source_frames,
)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds at 23.976 frames a second, an odd size, with sound."""
    return make_video(
        tmp_path_factory.mktemp("film") / "film.mkv", size=(101, 67), pixels="yuv444p"
    )


def test_an_odd_clip_with_a_fractional_rate_is_read_exactly(film: Path) -> None:
    clip = read_video(film)

    assert clip.rate == FILM
    assert clip.frames.shape == (48, 67, 101, 3)
    assert clip.has_audio
    assert clip.notes == ()
    first = next(source_frames("testsrc2=size=101x67:rate=24000/1001,format=rgb24"))
    assert np.abs(clip.frames[0].astype(int) - first.to_ndarray(format="rgb24")).mean() < 6


def test_a_real_clip_comes_out_with_its_rate_and_its_very_sound(film: Path, tmp_path: Path) -> None:
    clip = read_video(film)
    path, notes = write_video(
        tmp_path / "out.mp4", clip, audio=clip, record={"recipe": {"seed": 1}}
    )
    told = picture_stream(path)

    assert told["rate"] == FILM
    assert told["frames"] == 48
    assert (told["codec"], told["pixels"]) == ("h264", "yuv420p")
    assert told["size"] == (102, 68)
    assert notes == ("H.264 needs even sides: 101 x 67 got one more row or column",)
    assert audio_packets(path) == audio_packets(film)
    assert read_video_record(path)["recipe"] == {"seed": 1}
    again = read_video(path)
    # The finest stripes lose colour to 4:2:0, nothing else changes.
    assert np.median(np.abs(again.frames[:, :67, :101].astype(int) - clip.frames)) < 4


def test_the_same_clip_gives_the_same_bytes(film: Path, tmp_path: Path) -> None:
    clip = read_video(film, FrameRange(0, 8))
    one, other = (write_video(tmp_path / n, clip, audio=clip)[0] for n in ("a.mp4", "b.mp4"))

    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.mov", "clip.webm"])
def test_common_containers_are_read(name: str, tmp_path: Path) -> None:
    codec, sound = ("libvpx", None) if name.endswith("webm") else ("libx264", "aac")
    path = make_video(tmp_path / name, rate=Fraction(25), seconds=1, codec=codec, sound=sound)
    clip = read_video(path)

    assert (clip.rate, len(clip.frames)) == (25, 25)
    assert clip.has_audio == (sound is not None)


@pytest.mark.parametrize("source", ["mandelbrot", "life"])
def test_other_sources_survive_the_round_trip(source: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / "in.mp4", source=source, sound=None, seconds=1)
    clip = read_video(path, FrameRange(0, 5))
    again = read_video(write_video(tmp_path / "out.mp4", clip)[0])

    assert len(again.frames) == 5
    assert np.abs(again.frames.astype(int) - clip.frames).mean() < 4


def test_frames_and_colours_are_those_that_were_written(tmp_path: Path) -> None:
    frames = coloured_frames(6)
    path, _ = write_video(tmp_path / "out.mp4", Video(frames, Fraction(10)))
    again = read_video(path)

    assert again.rate == 10
    assert np.abs(again.frames.astype(int) - frames).max() <= 6


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        (FrameRange(2, 5), [2, 3, 4]),
        (FrameRange(6), [6, 7]),
        (FrameRange(stride=3), [0, 3, 6]),
        (FrameRange(1, 100, 4), [1, 5]),
    ],
)
def test_a_range_and_a_stride_take_the_right_frames(
    chosen: FrameRange, indices: list[int], tmp_path: Path
) -> None:
    frames = coloured_frames(8)
    path, _ = write_video(tmp_path / "in.mp4", Video(frames, FILM))
    clip = read_video(path, chosen)

    assert np.abs(clip.frames.astype(int) - frames[indices]).max() <= 6
    assert clip.rate == FILM / chosen.stride
    assert clip.start == chosen.start / FILM


def test_the_sound_of_a_range_is_that_of_its_time(film: Path, tmp_path: Path) -> None:
    clip = read_video(film, FrameRange(12, 36))
    path, _ = write_video(tmp_path / "part.mp4", clip, audio=clip)
    part, whole = audio_packets(path), audio_packets(film)

    assert part == whole[whole.index(part[0]) : whole.index(part[0]) + len(part)]
    assert len(part) / len(whole) == pytest.approx(0.5, abs=0.06)


def test_sound_that_mp4_cannot_hold_is_encoded_and_said(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", sound="pcm_s16le", seconds=1)
    clip = read_video(source)
    path, notes = write_video(tmp_path / "out.mp4", clip, audio=clip)

    assert notes == ("MP4 cannot hold pcm_s16le: sound was encoded as AAC",)
    assert len(audio_packets(path)) > 20


def test_a_variable_rate_is_resampled_to_what_was_on_screen(tmp_path: Path) -> None:
    stamps = [0, 100, 200, 600, 700, 800, 900]  # a long fourth frame hides three
    source = make_video(
        tmp_path / "vfr.mkv", rate=Fraction(10), seconds=1, sound=None, stamps=stamps
    )
    clip = read_video(source, rate=Fraction(10))
    own = read_video(source)

    assert len(clip.frames) == 10
    assert np.array_equal(clip.frames[2], clip.frames[5])
    assert not np.array_equal(clip.frames[5], clip.frames[6])
    assert "variable frame rate" in own.notes[0]
    assert abs(own.seconds - 1) < Fraction(1, 10)


def test_another_rate_may_be_asked_for(film: Path) -> None:
    clip = read_video(film, rate=Fraction(12))

    assert clip.rate == 12
    assert len(clip.frames) == 24
    assert "resampled to 24" in clip.notes[0]


def test_a_folder_of_frames_is_read_by_the_numbers_in_the_names(tmp_path: Path) -> None:
    frames = coloured_frames(12)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    clip = read_video(tmp_path, FrameRange(1, 11, 2), rate=Fraction(30))

    assert np.array_equal(clip.frames, frames[1:11:2])
    assert clip.rate == 15
    assert not clip.has_audio


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animated_pictures_are_read_with_their_times(kind: str, tmp_path: Path) -> None:
    frames = coloured_frames(5)
    pictures = [Image.fromarray(frame) for frame in frames]
    path = tmp_path / f"anim.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=[100, 100, 300, 100, 100],
        **options,
    )
    clip = read_video(path, rate=Fraction(10))

    order = [0, 1, 2, 2, 2, 3, 4]
    assert np.abs(clip.frames.astype(int) - frames[order]).max() <= 4
    assert clip.seconds == Fraction(7, 10)
    assert "variable" in read_video(path).notes[0]


def test_a_gif_keeps_its_length_though_it_counts_in_hundredths(tmp_path: Path) -> None:
    frames = coloured_frames(48)
    path, notes = write_video(
        tmp_path / "out.gif", Video(frames, FILM), record={"recipe": {"prompt": "ü"}}
    )
    with Image.open(path) as image:
        lengths = []
        for i in range(image.n_frames):
            image.seek(i)
            lengths.append(image.info["duration"])

    assert abs(sum(lengths) - 2002) <= 10
    assert notes == ()
    assert read_video_record(path)["recipe"] == {"prompt": "ü"}
    assert np.abs(read_video(path, rate=FILM).frames[:40].astype(int) - frames[:40]).max() <= 8


def test_a_gif_that_is_too_fast_says_so(tmp_path: Path) -> None:
    _, notes = write_video(tmp_path / "out.gif", Video(coloured_frames(12), Fraction(120)))

    assert "became 50.00 frames/s" in notes[0]


def test_secrets_do_not_reach_the_metadata(tmp_path: Path) -> None:
    record = {"recipe": {"model": "https://user:pass@host/model"}}
    path, _ = write_video(tmp_path / "out.mp4", Video(coloured_frames(2), FILM), record=record)

    assert "pass" not in str(read_video_record(path))


def test_tensors_and_frames_convert_both_ways() -> None:
    clip = Video(coloured_frames(3), FILM)

    assert np.array_equal(Video.of_tensor(clip.tensor(), FILM).frames, clip.frames)
    assert clip.tensor().shape == (3, 3, 24, 32)
