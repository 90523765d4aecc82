"""Faults of video files: each is a clear error, and no half file is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import WRONG
from attnctl.cli.failures import explain
from attnctl.errors import VideoError
from attnctl.video import (
    FrameRange,
    Video,
    read_video,
    read_video_record,
    resample_times,
    write_video,
)
from attnctl.video.clip import check_size
from attnctl.video.timing import is_constant, nominal_rate
from tests.video.made_videos import FILM, coloured_frames, make_video


def clip(frames: int = 4) -> Video:
    return Video(coloured_frames(frames), FILM)


@pytest.mark.parametrize("kind", [".mp4", ".gif"])
def test_a_single_frame_is_a_clip_too(kind: str, tmp_path: Path) -> None:
    path, _ = write_video(tmp_path / f"one{kind}", clip(1))

    assert len(read_video(path).frames) == 1


def test_files_that_are_no_video_are_explained(tmp_path: Path) -> None:
    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    Image.new("RGB", (8, 8)).save(tmp_path / "single.png")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "missing.mp4": "there is no video file",
        write("text.mp4", b"not a video at all" * 40): "cannot be read",
        write("nothing.mp4", b""): "cannot be read",
        write("broken.gif", b"GIF89a" + b"\0" * 40): "no picture that can be read",
        tmp_path / "single.png": "single picture",
        tmp_path / "empty": "holds no picture",
    }
    for path, message in cases.items():
        with pytest.raises(VideoError, match=message):
            read_video(path)


@pytest.mark.parametrize("name", ["whole.mp4", "whole.avi"])
def test_a_file_that_was_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    whole = make_video(tmp_path / name, seconds=1, sound=None)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match="damaged"):
        read_video(cut)


def test_frames_that_cannot_be_decoded_are_counted(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", seconds=1, sound=None, size=(202, 166))
    data = bytearray(whole.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) // 3
    data[middle : middle + 3000] = bytes(3000)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(bytes(data))

    with pytest.raises(VideoError, match="damaged"):
        read_video(broken)


def test_only_sound_is_no_video(tmp_path: Path) -> None:
    import av

    from tests.video.made_videos import beeps

    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        track = output.add_stream("aac", rate=44100)
        for packet in beeps(track, 1):
            output.mux(packet)
    with pytest.raises(VideoError, match="only sound"):
        read_video(tmp_path / "sound.mp4")


def test_no_frame_in_the_range_says_what_there_is(tmp_path: Path) -> None:
    path, _ = write_video(tmp_path / "in.mp4", clip())
    with pytest.raises(VideoError, match=r"no frame in the range 9-12; it has 4, 0 to 3"):
        read_video(path, FrameRange(9, 12))


@pytest.mark.parametrize("text", ["", "a-b", "5", "-", "7-3", "3-3", "1-2-3"])
def test_ranges_that_are_written_wrongly_are_refused(text: str) -> None:
    with pytest.raises(VideoError, match="frames"):
        FrameRange.parse(text)


def test_ranges_are_read() -> None:
    assert FrameRange.parse("10-50", 2) == FrameRange(10, 50, 2)
    assert FrameRange.parse("10-") == FrameRange(10)
    assert FrameRange.parse("-50") == FrameRange(0, 50)
    assert str(FrameRange(10, 50, 2)) == "10-50 every 2"
    with pytest.raises(VideoError, match="stride"):
        FrameRange(stride=0)


def test_frames_of_different_sizes_are_refused(tmp_path: Path) -> None:
    for i, size in enumerate(((8, 8), (8, 8), (9, 8))):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    with pytest.raises(VideoError, match="9 x 8, the frames before it 8 x 8"):
        read_video(tmp_path)


def test_a_clip_that_is_too_large_says_how_to_take_less() -> None:
    with pytest.raises(VideoError, match="take a range of frames or a stride"):
        check_size(10_000, 2160, 3840, "long.mp4")


def test_unusual_pictures_in_a_folder_are_converted(tmp_path: Path) -> None:
    turned = Image.new("RGB", (8, 6), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    turned.save(tmp_path / "0.jpg", exif=exif)
    Image.new("CMYK", (6, 8), (0, 255, 255, 0)).save(tmp_path / "1.jpg")
    Image.new("RGBA", (6, 8), (255, 0, 0, 255)).save(tmp_path / "2.png")
    Image.fromarray(np.full((8, 6), 54000, np.uint16)).save(tmp_path / "3.png")
    frames = read_video(tmp_path).frames

    assert frames.shape == (4, 8, 6, 3)
    for red in frames[:3]:
        assert (np.abs(red.astype(int) - (255, 0, 0)) < 40).all()
    assert abs(int(frames[3, 0, 0, 0]) - 210) <= 1


def test_names_and_values_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"\.mp4 or \.gif"):
        write_video(tmp_path / "out.avi", clip())
    with pytest.raises(VideoError, match="uint8"):
        Video(np.zeros((2, 4, 4, 3), np.float32), FILM)
    with pytest.raises(VideoError, match="above 0"):
        Video(coloured_frames(2), Fraction(0))
    with pytest.raises(VideoError, match="above 0"):
        read_video(tmp_path, rate=Fraction(0))
    path, _ = write_video(tmp_path / "out.mp4", clip())
    with pytest.raises(VideoError, match="no attnctl record"):
        read_video_record(path)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 32 KiB, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="limits the size of files as Unix does")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
@pytest.mark.usefixtures("small_files")
def test_a_disk_that_fills_up_leaves_no_half_file(name: str, tmp_path: Path) -> None:
    old = tmp_path / name
    old.write_bytes(b"what was there before")
    noise = np.random.default_rng(0).integers(0, 255, (8, 96, 96, 3), dtype=np.uint8)
    with pytest.raises(OSError, match="File too large"):
        write_video(old, Video(noise, FILM))

    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert old.read_bytes() == b"what was there before"


def test_an_error_on_the_way_leaves_the_old_file(tmp_path: Path) -> None:
    path, _ = write_video(tmp_path / "out.mp4", clip())
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_video(path, clip(), record={"scale": float("nan")})

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_the_command_line_calls_it_a_wrong_command() -> None:
    assert explain(VideoError("no such video"))[0] == WRONG


def test_times_are_resampled_to_what_is_on_screen() -> None:
    times = [Fraction(n, 10) for n in (0, 1, 2, 6)]

    assert resample_times(times, Fraction(1, 10), Fraction(10)) == [0, 1, 2, 2, 2, 2, 3]
    assert resample_times(times[:1], Fraction(0), Fraction(10)) == [0]
    assert not is_constant(times, Fraction(10), Fraction(1, 1000))


def test_rates_of_files_that_count_in_milliseconds_are_snapped() -> None:
    times = [Fraction(round(1000 * i / FILM), 1000) for i in range(48)]

    assert is_constant(times, FILM, Fraction(1, 1000))
    assert nominal_rate(times, Fraction(42, 1000)) == FILM
    assert nominal_rate([Fraction(i, 7) for i in range(9)], Fraction(1, 7)) == 7
