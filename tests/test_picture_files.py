"""Pictures of every kind that people have, read as RGB or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attnctl.errors import RecipeError
from attnctl.picture_files import read_picture


def coloured(width: int = 40, height: int = 24) -> Image.Image:
    """Red above, blue below."""
    values = np.zeros((height, width, 3), np.uint8)
    values[: height // 2, :, 0] = 255
    values[height // 2 :, :, 2] = 255
    return Image.fromarray(values)


def test_a_plain_rgb_file_is_read_as_it_is(tmp_path: Path) -> None:
    coloured().save(tmp_path / "plain.png")
    read = read_picture(tmp_path / "plain.png")

    assert read.notes == ()
    assert read.image.tobytes() == coloured().tobytes()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_jpeg_is_turned_as_its_exif_orientation_says(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = coloured()
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    lying = upright.transpose(turns[orientation])
    lying.save(tmp_path / "photo.jpg", exif=exif, quality=98, subsampling=0)
    read = read_picture(tmp_path / "photo.jpg")

    assert read.image.size == upright.size
    assert np.abs(np.asarray(read.image, int) - np.asarray(upright, int)).mean() < 3
    assert read.notes == ("turned upright by its EXIF orientation",)


def test_transparent_palette_pixels_show_white(tmp_path: Path) -> None:
    palette = coloured().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    clear = palette.getpixel((0, 0))
    palette.save(tmp_path / "palette.png", transparency=clear)
    read = read_picture(tmp_path / "palette.png")

    assert read.image.getpixel((0, 0)) == (255, 255, 255)
    assert read.image.getpixel((0, 23)) == (0, 0, 255)
    assert "transparent pixels laid over white" in read.notes


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    layer = coloured().convert("RGBA")
    layer.putalpha(128)
    layer.save(tmp_path / "layer.png")

    assert read_picture(tmp_path / "layer.png").image.getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path, name: str) -> None:
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    read = read_picture(tmp_path / name)

    expected = np.rint(values / 257).astype(int)
    assert np.array_equal(np.asarray(read.image)[..., 0].astype(int), expected)
    assert "16-bit values scaled to 8 bit" in read.notes


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "grey.png"), ("CMYK", "print.jpg"), ("1", "bits.png")]
)
def test_other_kinds_of_pixels_become_rgb(tmp_path: Path, mode: str, name: str) -> None:
    coloured().convert(mode).save(tmp_path / name)
    read = read_picture(tmp_path / name)

    assert read.image.mode == "RGB"
    assert any("converted to RGB" in note for note in read.notes)


def test_a_truncated_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noisy).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RecipeError, match=r"damaged: .*truncated"):
            read_picture(tmp_path / name)


def test_a_picture_of_one_pixel_is_too_small(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    with pytest.raises(RecipeError, match="1 x 1 pixels; at least 16 on each side"):
        read_picture(tmp_path / "one.png")


def test_what_is_no_still_picture_is_refused(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "float.tif")

    with pytest.raises(RecipeError, match="animated, with 3 frames"):
        read_picture(tmp_path / "moving.gif")
    with pytest.raises(RecipeError, match="no picture that can be read"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(RecipeError, match="floating-point"):
        read_picture(tmp_path / "float.tif")
    with pytest.raises(RecipeError, match="there is no picture file"):
        read_picture(tmp_path / "missing.png")


def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnctl import imaging

    monkeypatch.setattr(imaging, "MAX_PIXELS", 900)
    coloured().save(tmp_path / "large.png")
    with pytest.raises(RecipeError, match="at most 900"):
        read_picture(tmp_path / "large.png")
