"""Clips made of pictures: folders of frames, animated GIF, WebP and PNG."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from attnctl.errors import RecipeError, VideoError
from attnctl.imaging import open_picture
from attnctl.video.clip import FrameRange, Frames, Video, check_size
from attnctl.video.timing import is_constant, nominal_rate, resample_times

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ANIMATIONS = (".gif", ".webp", ".apng", ".png")
FOLDER_RATE = Fraction(8)
"""Frames a second of a folder of frames, unless the caller says otherwise."""

BROWSER_DELAY_MS = 100
"""What players show for a frame that claims to last 0 ms."""


def read_folder(folder: Path, chosen: FrameRange, rate: Fraction | None) -> Video:
    """Read a folder of frames in the order of the numbers in their names.

    Raises:
        VideoError: it holds no picture, or pictures of different sizes.
    """
    files = sorted((f for f in folder.iterdir() if f.suffix.lower() in PICTURES), key=_by_number)
    if not files:
        raise VideoError(f"{str(folder)!r} holds no picture; frames end in {', '.join(PICTURES)}")
    picked = [files[i] for i in chosen.of(len(files), str(folder))]
    first = _upright(_open(picked[0]))
    check_size(len(picked), first.height, first.width, str(folder))
    frames = np.empty((len(picked), first.height, first.width, 3), np.uint8)
    for i, file in enumerate(picked):
        image = _upright(_open(file))
        if image.size != first.size:
            raise VideoError(
                f"{str(file)!r} is {image.width} x {image.height}, the frames before it"
                f" {first.width} x {first.height}; all frames must have one size"
            )
        frames[i] = np.asarray(image)
    full = rate or FOLDER_RATE
    return Video(frames, full / chosen.stride, start=chosen.start / full)


def read_animation(path: Path, chosen: FrameRange, rate: Fraction | None) -> Video | None:
    """Read an animated picture; ``None`` if it is a single one.

    Raises:
        VideoError: it is damaged.
    """
    image = _open(path)
    count = int(getattr(image, "n_frames", 1))
    if count == 1 and path.suffix.lower() != ".gif":
        return None
    times, last = [Fraction(0)], Fraction(0)
    for frame in _frames_of(image, path, count):
        last = Fraction(int(frame.info.get("duration", 0)) or BROWSER_DELAY_MS, 1000)
        times.append(times[-1] + last)
    times.pop()
    full = rate or nominal_rate(times, last)
    constant = rate is None and is_constant(times, full, Fraction(1, 100))
    order = list(range(count)) if constant else resample_times(times, last, full)
    picked = [order[i] for i in chosen.of(len(order), str(path))]
    check_size(len(picked), image.height, image.width, str(path))
    frames = _decode(image, path, picked)
    notes = () if constant else (f"variable frame rate: resampled to {full}",)
    return Video(frames, full / chosen.stride, path, chosen.start / full, notes=notes)


def _decode(image: Image.Image, path: Path, picked: list[int]) -> Frames:
    frames = np.empty((len(picked), image.height, image.width, 3), np.uint8)
    places: dict[int, list[int]] = {}
    for place, index in enumerate(picked):
        places.setdefault(index, []).append(place)
    for index, frame in enumerate(_frames_of(image, path, max(places) + 1)):
        if index in places:
            frames[places[index]] = np.asarray(_on_white(frame))
    return frames


def _frames_of(image: Image.Image, path: Path, count: int) -> Iterator[Image.Image]:
    for index in range(count):
        try:
            image.seek(index)
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise VideoError(
                f"{str(path)!r} is damaged at frame {index} of {count}: {error}"
            ) from None
        yield image


def _open(path: Path) -> Image.Image:
    try:
        return open_picture(path)
    except RecipeError as error:
        raise VideoError(str(error)) from None


def _upright(image: Image.Image) -> Image.Image:
    return _on_white(ImageOps.exif_transpose(image))


def _on_white(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        see_through = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(paper, see_through).convert("RGB")
    if image.mode.startswith("I"):  # 16 bit grey
        values = np.asarray(image).astype(np.float32) / 257
        image = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def _by_number(file: Path) -> tuple[tuple[int, str], ...]:
    """Sort ``frame2`` before ``frame10``."""
    parts = re.split(r"(\d+)", file.name.casefold())
    return tuple((int(p), "") if p.isdigit() else (-1, p) for p in parts)
