import json
import os

import pytest
from PIL import Image, PngImagePlugin

from attnctl import imaging
from attnctl.errors import RecipeError
from attnctl.files import new_file
from attnctl.imaging import open_picture, read_record, save_png

RECORD = {
    "recipe": {
        "model": "shapes",
        "prompt": "a red circle, and a «blue» square 🟦",
        "seed": 7,
        "steps": 25,
        "guidance": 5.0,
        "size": "64x64",
    },
    "scheduler": {"class": "DDIMScheduler", "config": {}},
    "techniques": [{"name": "soft-pag", "settings": {"scale": 2.0}}],
}


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (8, 6), (200, 30, 40))


def test_a_record_comes_back_as_it_was_written(tmp_path, picture):
    path = save_png(picture, tmp_path / "a.png", RECORD)
    record = read_record(path)
    assert {key: record[key] for key in RECORD} == RECORD
    assert set(record["versions"]) >= {"attnctl", "torch", "diffusers"}


def test_saving_keeps_every_pixel(tmp_path):
    noise = Image.frombytes("RGB", (16, 16), os.urandom(16 * 16 * 3))
    path = save_png(noise, tmp_path / "a.png", RECORD)
    assert Image.open(path).tobytes() == noise.tobytes()


def test_folders_are_made_only_when_something_is_saved(tmp_path, picture):
    save_png(picture, tmp_path / "new" / "deep" / "a.png")
    assert [p.name for p in (tmp_path / "new" / "deep").iterdir()] == ["a.png"]


def test_the_parameters_chunk_has_the_lines_that_other_tools_read(tmp_path, picture):
    path = save_png(picture, tmp_path / "a.png", RECORD)
    prompt, settings = Image.open(path).text["parameters"].split("\n")
    assert prompt == RECORD["recipe"]["prompt"]
    assert settings.startswith("Steps: 25, Sampler: DDIM, CFG scale: 5.0, Seed: 7, Size: 64x64")


@pytest.mark.parametrize("prompt", ["", "   ", "nul\0 byte", "שלום", "x" * 100_000, "line\nbreak"])
def test_odd_prompts_survive_in_metadata(tmp_path, picture, prompt):
    path = save_png(picture, tmp_path / "a.png", {"recipe": {"prompt": prompt}})
    assert read_record(path)["recipe"]["prompt"] == prompt


@pytest.mark.parametrize(
    ("secret", "leak"),
    [
        ("hf_abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnop"),
        ("https://someone:pa55word@host/model", "pa55word"),
        ("https://host/model?token=s3cr3t&x=1", "s3cr3t"),
    ],
)
def test_secrets_never_reach_the_file(tmp_path, picture, secret, leak):
    path = save_png(picture, tmp_path / "a.png", {"recipe": {"prompt": "x", "model": secret}})
    record = read_record(path)
    assert leak not in json.dumps(record)
    assert leak.encode() not in path.read_bytes()


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="disk full"), new_file(path) as file:
        file.write(b"half")
        raise RuntimeError("disk full")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"no picture file .*nowhere\.png"):
        read_record(tmp_path / "nowhere.png")


def test_a_text_file_is_no_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("hello")
    with pytest.raises(RecipeError, match="no picture that can be read"):
        read_record(path)


def test_a_truncated_picture_is_damaged(tmp_path):
    noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
    path = save_png(noise, tmp_path / "a.png", RECORD)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RecipeError, match="damaged"):
        read_record(path)


def test_a_jpeg_carries_no_recipe(tmp_path, picture):
    picture.save(tmp_path / "a.jpg")
    with pytest.raises(RecipeError, match="JPEG file; only PNG"):
        read_record(tmp_path / "a.jpg")


def test_a_foreign_png_carries_no_recipe(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="carries no attnctl recipe"):
        read_record(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        ("{broken", "broken JSON"),
        ("[1, 2]", "holds no recipe"),
        ('{"recipe": 3}', "holds no recipe"),
        ('{"recipe": {}, "format": 99}', "format 99"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_an_altered_record_is_refused(tmp_path, picture, chunk, message):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(imaging.CHUNK, chunk)
    picture.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(RecipeError, match=message):
        read_record(tmp_path / "a.png")


def test_a_picture_beyond_the_pixel_limit_is_not_decoded(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(imaging, "MAX_PIXELS", 40)
    picture.save(tmp_path / "a.png")
    with pytest.raises(RecipeError, match="8 x 6 pixels; at most 40"):
        open_picture(tmp_path / "a.png")
