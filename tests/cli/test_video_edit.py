"""``attnctl video-edit`` and ``attnctl video``: files in, files out, mistakes in one line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import attnctl.pipelines.video_edit as editing
from attnctl.cli import FAILED, WRONG
from attnctl.video import Video, read_video, read_video_record, write_video
from tests.support.pipelines import build
from tests.video.made_videos import FILM, audio_packets, make_video


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of 64 x 64."""
    frames = np.full((4, 64, 64, 3), 90, np.uint8)
    for t in range(4):
        frames[t, 20:40, 10 + 2 * t : 30 + 2 * t] = (220, 40, 40)
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write_video(path, Video(frames, Fraction(8)))[0]


def command(clip: Path, model: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        "video-edit", clip, "--source", "a red circle", "--target", "a blue circle",
        "--model", model, "--steps", 1, "--out", out, *more,
    )  # fmt: skip


def test_a_film_with_sound_goes_in_and_comes_out(
    run: Any, tiny_model: Path, tmp_path: Path
) -> None:
    film = make_video(tmp_path / "film.mkv", size=(101, 67), pixels="yuv444p")
    done = run(*command(film, tiny_model, tmp_path / "out", "--json", "--inject", 0))
    told = done.json
    made = read_video(told["video"])

    assert done.code == 0
    assert (told["frames"], told["rate"], told["size"]) == (48, str(FILM), [101, 67])
    assert (len(made.frames), made.rate) == (48, FILM)
    assert told["chunks"] == 3
    assert audio_packets(Path(told["video"])) == audio_packets(film)
    record = read_video_record(told["video"])
    assert record["recipe"]["prompt"] == "a blue circle"
    assert record["video_edit"]["source"] == "a red circle"
    assert record["techniques"][0]["name"] == "flatten"
    for name in ("sheet", "flow"):
        assert Image.open(told[name]).width > 200
    assert any("even sides" in note for note in told["notes"])


def test_a_range_a_stride_and_a_gif(run: Any, tiny_model: Path, clip: Path, tmp_path: Path) -> None:
    more = ("--frames", "1-4", "--stride", 2, "--gif", "--flow", "none", "--inject", 0)
    done = run(*command(clip, tiny_model, tmp_path, "-t", "cross-frame-attention", *more, "--json"))

    assert done.json["frames"] == 2
    assert done.json["rate"] == "4"
    assert "flow" not in done.json
    assert len(read_video(done.json["gif"]).frames) == 2


def test_a_run_that_died_goes_on_and_gives_the_same_file(
    run: Any, tiny_model: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*command(clip, tiny_model, tmp_path / "a", "--chunk", 2, "--inject", 0, "--json"))
    true, calls = editing.edit_chunk, [0]

    def dying(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise MemoryError("out of memory")
        return true(*arguments)

    monkeypatch.setattr(editing, "edit_chunk", dying)
    order = command(clip, tiny_model, tmp_path / "b", "--chunk", 2, "--inject", 0)
    died = run(*order)
    left = [file.name for file in (tmp_path / "b").rglob("*") if file.is_file()]
    again = run(*order, "--json")

    assert (died.code, "out of memory" in died.err) == (FAILED, True)
    assert sorted(left) == ["chunk-0000.npz", "order.json"]
    assert again.json["resumed"] == 1
    one, other = (Path(done.json["video"]).read_bytes() for done in (whole, again))
    assert one == other
    assert not any(path.name.startswith(".") for path in (tmp_path / "b").iterdir())


def test_the_plan_is_told_and_nothing_is_made(
    run: Any, tiny_model: Path, clip: Path, tmp_path: Path
) -> None:
    done = run(*command(clip, tiny_model, tmp_path / "out", "--plan"))

    assert done.code == 0
    assert "4 frames at 64 x 64 in 1 chunk(s)" in done.out
    assert "on the device" in done.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--frames", "9-12"), "no frame in the range 9-12; it has 4"),
        (("--frames", "x"), "write 10-50"),
        (("--rate", "fast"), "frames a second"),
        (("--flow", "diss"), "did you mean 'dis'"),
        (("--flow", "missing.npz"), "there is no flow file"),
        (("-t", "flaten"), "did you mean 'flatten'"),
        (("--size", "65x64"), "multiples"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_made(
    run: Any, tiny_model: Path, clip: Path, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    done = run(*command(clip, tiny_model, tmp_path / "out", *more))

    assert done.code == WRONG
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_a_video_that_is_none_is_told_before_the_model_is_loaded(run: Any, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    done = run(*command(tmp_path / "text.mp4", Path("no-such-model"), tmp_path / "out"))

    assert done.code == WRONG
    assert "cannot be read" in done.err


@pytest.fixture(scope="module")
def animation_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "animation"
    build("animatediff").save_pretrained(folder)
    return folder


def test_a_clip_is_made_from_words(run: Any, animation_model: Path, tmp_path: Path) -> None:
    order = ("video", "a cat", "--model", animation_model, "--steps", 1, "--frames", 3,
             "--size", "32x32", "--seed", 5, "--count", 2, "-t", "flatten", "--gif",
             "--out", tmp_path, "--json")  # fmt: skip
    done = run(*order)
    first, second = done.json["clips"]
    made = read_video(first["video"])

    assert done.code == 0
    assert (first["seed"], second["seed"]) == (5, 6)
    assert (made.frames.shape, made.rate) == ((3, 32, 32, 3), 8)
    assert not np.array_equal(made.frames, read_video(second["video"]).frames)
    record = read_video_record(first["video"])
    assert record["recipe"]["seed"] == 5
    assert record["techniques"][0]["name"] == "flatten"
    assert Image.open(first["sheet"]).width > 100


def test_a_long_clip_is_made_of_several_prompts(
    run: Any, animation_model: Path, tmp_path: Path
) -> None:
    order = ("video", "a cat", "--then", "a dog", "--then", "a frog", "--model", animation_model,
             "--steps", 1, "--frames", 3, "--size", "32x32", "--seed", 5, "--overlap", 1,
             "--transitions", 1, "--pairs", 2, "--out", tmp_path, "--json")  # fmt: skip
    done = run(*order)
    assert done.code == 0
    (clip,) = done.json["clips"]

    assert Path(clip["video"]).name.startswith("a-cat-then-a-dog-then-a-frog")
    assert len(read_video(clip["video"]).frames) == 3 + 4 * 2
    record = read_video_record(clip["video"])
    assert record["long_video"]["then"] == ["a dog", "a frog"]
    assert record["techniques"][0]["name"] == "ditctrl"
    assert Image.open(clip["sheet"]).width > 100


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--overlap", 1), "--overlap goes with a clip of several prompts; add --then"),
        (("--no-sharing",), "--no-sharing goes with"),
        (("--then", "a dog", "--overlap", 3), "take 0 to 2"),
        (("--then", "a dog", "-t", "ditctrl:mask_words=[cat]"), "'cat' is not in the prompt"),
    ],
)
def test_mistakes_with_long_clips_are_told(
    run: Any, animation_model: Path, tmp_path: Path, more: tuple[Any, ...], message: str
) -> None:
    out = tmp_path / "out"
    done = run("video", "a cat", "--model", animation_model, "--frames", 3, "--out", out, *more)

    assert done.code == WRONG
    assert message in done.err
    assert not out.exists()


def test_a_picture_model_says_what_makes_videos(run: Any, tiny_model: Path, tmp_path: Path) -> None:
    done = run("video", "a red circle", "--model", tiny_model, "--out", tmp_path / "out")

    assert done.code == WRONG
    assert "makes pictures, not videos" in done.err
    assert "video-edit" in done.err


def test_a_video_model_is_no_model_to_edit_with(
    run: Any, animation_model: Path, clip: Path, tmp_path: Path
) -> None:
    done = run(*command(clip, animation_model, tmp_path / "out"))

    assert done.code == WRONG
    assert "makes videos itself" in done.err
