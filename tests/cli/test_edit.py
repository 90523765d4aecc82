"""``attnctl edit``: what it writes, what it says, and what it refuses before loading anything."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import editing
from attnctl.imaging import read_record

SOURCE, TARGET = "a red circle", "a blue circle"


@pytest.fixture
def photo(tmp_path):
    values = np.full((64, 64, 3), 230, np.uint8)
    values[16:48, 16:48] = (220, 40, 40)
    path = tmp_path / "photo.png"
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def change(run, tmp_path, tiny_model):
    def edit(image, *arguments, code=0, model=tiny_model):
        texts = () if "--source" in arguments else ("--source", SOURCE)
        ran = run(
            "edit", image, *texts, "--target", TARGET, "--model", model, "--steps", 2,
            "--out", tmp_path / "out", *arguments,
        )  # fmt: skip
        assert ran.code == code, ran.err
        return ran

    return edit


def test_an_edit_writes_picture_sheet_difference_and_scores(change, photo, tiny_model):
    made = change(photo, "--json", "--seed", 3, "--guidance", 4).json
    record = read_record(made["edited"])

    assert record["recipe"] == {
        "model": str(tiny_model), "prompt": TARGET, "seed": 3, "count": 1, "steps": 2,
        "guidance": 4.0, "size": "64x64",
    }  # fmt: skip
    assert record["edit"]["source"] == SOURCE
    assert record["edit"]["picture"]["name"] == "photo.png"
    assert len(record["edit"]["picture"]["sha256"]) == 64
    assert record["edit"]["settings"]["method"] == "auto"
    assert record["edit"]["scores"] == made["scores"]
    assert Image.open(made["edited"]).size == Image.open(made["difference"]).size == (64, 64)
    assert Image.open(made["sheet"]).width > 4 * 64
    assert set(made["scores"]) == {"psnr", "ssim", "reconstruction_psnr"}
    assert str(photo.parent) not in json.dumps(record["edit"])


def test_the_same_order_gives_the_same_pixels_under_the_same_name(change, photo):
    first = change(photo, "--json").json
    pixels = Image.open(first["edited"]).tobytes()
    again = change(photo, "--json").json
    other = change(photo, "--json", "--method", "sdedit").json

    assert again["edited"] == first["edited"]
    assert Image.open(again["edited"]).tobytes() == pixels
    assert other["edited"] != first["edited"]


def test_techniques_and_a_mask_leave_the_outside_alone(change, photo, tmp_path):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    mask_file = tmp_path / "mask.png"
    mask.save(mask_file)
    values = change(photo, "--json", "--mask", mask_file, "-t", "masa-ctrl:start_layer=2").json

    assert values["scores"]["psnr_outside"] == 99.0
    assert [entry["name"] for entry in read_record(values["edited"])["techniques"]] == ["masa-ctrl"]
    assert "masa-ctrl" in values["report"]["settings"]


def test_comparing_adds_the_baselines_to_sheet_and_answer(change, photo):
    values = change(photo, "--json", "--compare", "-t", "pag").json

    assert list(values["others"]) == ["without techniques", "flow-edit", "sdedit", "regenerate"]
    assert Image.open(values["sheet"]).height > 2 * 192


def test_what_was_done_is_told_in_words(change, photo):
    ran = change(photo)

    assert re.search(r"^edited: .*\.png$", ran.out, re.MULTILINE)
    assert re.search(r"^scores: psnr [\d.]+, ssim", ran.out, re.MULTILINE)


def test_a_recipe_gives_model_techniques_and_the_target(run, photo, tmp_path, tiny_model):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {tiny_model}\nprompt: {TARGET}\nsteps: 2\nguidance: 3.0\ntechniques:\n- pag\n"
    )
    ran = run(
        "edit", photo, "--source", SOURCE, "--recipe", recipe, "--out", tmp_path / "o", "--json"
    )

    assert ran.code == 0, ran.err
    assert ran.json["recipe"]["prompt"] == TARGET
    assert ran.json["recipe"]["techniques"] == ["pag"]


def test_an_edited_picture_is_not_generated_again_from_its_prompt(change, run, photo):
    made = change(photo, "--json").json
    ran = run("generate", "--from", made["edited"])

    assert ran.code == 2
    assert "attnctl edit" in ran.err


# --- pictures of every kind ----------------------------------------------------------------------


def test_a_photo_is_turned_upright_and_fitted(change, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", (300, 200), "green")
    lying.save(tmp_path / "photo.jpg", exif=exif)
    ran = change(tmp_path / "photo.jpg")

    assert "turned upright by its EXIF orientation" in ran.err
    assert "fitted to (48, 80)" in ran.err or "fitted to (56, 80)" in ran.err


@pytest.mark.parametrize("kind", ["palette", "sixteen-bit", "odd"])
def test_unusual_pictures_are_converted_and_edited(change, tmp_path, kind):
    path = tmp_path / "unusual.png"
    if kind == "palette":
        image = Image.new("P", (64, 64), 0)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.save(path, transparency=0)
    elif kind == "sixteen-bit":
        Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(path)
    else:
        Image.new("RGB", (67, 53), "blue").save(path)
    values = change(path, "--json").json

    width, height = Image.open(values["edited"]).size
    assert width % 8 == height % 8 == 0
    assert bool(values["notes"]) == (kind != "odd")


# --- mistakes ------------------------------------------------------------------------------------


@pytest.fixture
def untouched(monkeypatch):
    """Fail if anything is loaded."""

    def load(order):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(editing, "load", load)


def mistakes(tmp_path):
    """Arguments, and what the answer must say."""
    truncated, tiny = tmp_path / "cut.png", tmp_path / "one.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(truncated)
    truncated.write_bytes(truncated.read_bytes()[:2000])
    Image.new("RGB", (1, 1)).save(tiny)
    good = tmp_path / "photo.png"
    return [
        ((tmp_path / "missing.png",), "there is no picture file"),
        ((truncated,), "damaged"),
        ((tiny,), "1 x 1 pixels; at least 16"),
        ((good, "--source", ""), "source prompt is empty"),
        ((good, "--source", "  "), "source prompt is empty"),
        ((good, "--target", " "), "target prompt is empty"),
        ((good, "--method", "invert"), "unknown method 'invert'"),
        ((good, "--mask", tmp_path / "no-mask.png"), "there is no picture file"),
        ((good, "--mask", tiny), "at least 16"),
        ((good, "-t", "masa-control"), "did you mean 'masa-ctrl'"),
        ((good, "-t", "pag", "--method", "sdedit"), "no source beside the edit"),
        ((good, "--device", "cuda:99"), "--device"),
        ((good, "--strength", 2), "strength=2.0"),
        ((good, "--refinements", -1), "refinements=-1"),
        ((good, "--steps", 0), "steps"),
    ]


def test_mistakes_are_told_before_anything_is_loaded(change, photo, tmp_path, untouched):
    for arguments, said in mistakes(tmp_path):
        ran = change(*arguments, code=2)
        assert said in ran.err, arguments
        assert "Traceback" not in ran.err


def test_a_model_of_another_family_is_refused_before_its_weights_are_read(
    change, photo, tmp_path, untouched
):
    folder = tmp_path / "wan"
    folder.mkdir()
    parts = {"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}
    (folder / "model_index.json").write_text(json.dumps(parts))
    ran = change(photo, model=folder, code=2)

    assert "WanTransformer3DModel" in ran.err
    assert "families that can" in ran.err


def test_a_recipe_for_several_pictures_is_refused(run, photo, tmp_path, untouched):
    for line, said in (("count: 3", "one target"), ("scheduler: DDIMScheduler", "sampler")):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"prompt: {TARGET}\n{line}\n")
        ran = run("edit", photo, "--source", SOURCE, "--recipe", recipe)
        assert ran.code == 2
        assert said in ran.err


def test_a_size_that_does_not_fit_names_the_nearest(change, photo):
    ran = change(photo, "--size", "61x64", code=2)

    assert "multiples of 8" in ran.err
