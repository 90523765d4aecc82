"""``attnctl compose``: what it writes and says, and what it refuses before loading anything."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import composing
from attnctl.imaging import read_record

PROMPT = "a blue square and a red circle"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "scene.png"
    Image.new("RGB", (64, 64), (230, 230, 230)).save(path)
    return path


@pytest.fixture
def subject(tmp_path):
    values = np.full((40, 48, 3), 30, np.uint8)
    values[8:32, 12:36] = (220, 40, 40)
    path = tmp_path / "object.png"
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def join(run, tmp_path, tiny_model, photo, subject):
    def compose(*arguments, code=0, model=tiny_model, **changes):
        given = {
            "--object": subject, "--box": "0.5,0.2,0.95,0.8", "--prompt": PROMPT,
            "--words": "red circle", **{f"--{name}": value for name, value in changes.items()},
        }  # fmt: skip
        ran = run(
            "compose", photo, *(part for pair in given.items() for part in pair), "--model", model,
            "--steps", 2, "--out", tmp_path / "out", *arguments,
        )  # fmt: skip
        assert ran.code == code, ran.err
        return ran

    return compose


@pytest.fixture
def mask(tmp_path):
    image = Image.new("L", (48, 40))
    image.paste(255, (12, 8, 36, 32))
    path = tmp_path / "mask.png"
    image.save(path)
    return path


def test_a_composition_writes_picture_and_sheet_with_a_whole_record(join, mask, tiny_model):
    made = join("--json", "--seed", 3, "--compare", mask=mask, domain="cartoon").json
    record = read_record(made["composed"])

    assert record["recipe"] == {
        "model": str(tiny_model), "prompt": PROMPT, "seed": 3, "count": 1, "steps": 2,
        "guidance": 3.0, "size": "64x64",
    }  # fmt: skip
    told = record["compose"]
    assert [told[name]["name"] for name in ("background", "object", "mask")] == [
        "scene.png", "object.png", "mask.png",
    ]  # fmt: skip
    assert len(told["object"]["sha256"]) == 64
    assert told["box"] == [0.5, 0.2, 0.95, 0.8]
    assert told["words"] == ["red circle"]
    assert (told["settings"]["infuse"], told["settings"]["paste"]) == (0.4, 0.3)
    assert told["scores"] == made["scores"]
    assert str(mask.parent) not in json.dumps(told)
    assert made["without_techniques"]["psnr_outside"] > 0
    assert Image.open(made["composed"]).size == (64, 64)
    assert Image.open(made["sheet"]).width > 5 * 64


def test_the_same_order_gives_the_same_pixels_under_the_same_name(join):
    first, again = join("--json").json, join("--json").json
    other = join("--json", "--infuse", 1, "--paste", 0).json

    assert again["composed"] == first["composed"]
    assert other["composed"] != first["composed"]
    assert "prime-composer" in other["report"]["settings"]


def test_what_was_done_is_told_in_words(join):
    ran = join("-t", "heat-maps")

    assert re.search(r"^composed: .*\.png$", ran.out, re.MULTILINE)
    assert re.search(r"^scores: psnr [\d.]+, ssim", ran.out, re.MULTILINE)
    assert "prime-composer" in ran.err


def test_a_composition_is_not_generated_again_from_its_prompt(join, run):
    ran = run("generate", "--from", join("--json").json["composed"])

    assert ran.code == 2
    assert "attnctl compose" in ran.err


@pytest.fixture
def untouched(monkeypatch):
    """Fail if anything is loaded."""

    def load(order):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(composing, "load", load)


@pytest.mark.usefixtures("untouched")
def test_mistakes_are_told_before_anything_is_loaded(join, tmp_path, photo):
    for changes, said in (
        ({"object": tmp_path / "none.png"}, "there is no picture file"),
        ({"box": "0.5,0.2"}, "must be x0,y0,x1,y1"),
        ({"box": "0.9,0.2,0.5,0.8"}, "must be x0,y0,x1,y1"),
        ({"prompt": " "}, "prompt"),
        ({"words": " , "}, "must list the object's words"),
        ({"domain": "cartoons"}, "did you mean 'cartoon'"),
        ({"infuse": 2}, "infuse=2.0"),
        ({"mask": photo}, "make them one size"),
        ({"model": "shapes-mmdit"}, "cannot compose pictures; families that can: UNet"),
        ({"device": "cuda:99"}, "--device"),
    ):
        ran = join(code=2, **changes)
        assert said in ran.err, changes
        assert "Traceback" not in ran.err


def test_a_word_that_the_prompt_lacks_is_told(join):
    ran = join(code=2, words="green star")

    assert "'green star' is not in the prompt" in ran.err
