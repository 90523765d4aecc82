import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from attnctl.cli import studio
from attnctl.imaging import read_record

CAPTION = "a red circle and a blue square"
EXCITE = "attend-and-excite:subjects=circle+square,steps=0-50%"


@pytest.fixture
def make(run, tmp_path, tiny_model):
    def generate(*arguments, out="pictures", code=0):
        ran = run("generate", *arguments, "--model", tiny_model, "--out", tmp_path / out, "--json")
        assert ran.code == code, ran.err
        return ran.json

    return generate


def pixels(path):
    return np.asarray(Image.open(path))


def test_each_picture_carries_its_whole_recipe(make, tiny_model):
    made = make(CAPTION, "--seed", 7, "--count", 2, "--steps", 2, "--negative", "blurry")
    assert [picture["seed"] for picture in made["pictures"]] == [7, 8]
    record = read_record(made["pictures"][1]["path"])
    assert record["recipe"] == {
        "model": str(tiny_model),
        "prompt": CAPTION,
        "negative": "blurry",
        "seed": 8,
        "count": 1,
        "steps": 2,
        "guidance": 7.5,
        "size": "64x64",
        "scheduler": "DDIMScheduler",
    }
    assert record["scheduler"]["class"] == "DDIMScheduler"
    assert record["run"]["dtype"] == "float32"


def test_picture_i_of_many_equals_the_picture_made_alone(make):
    many = make(CAPTION, "--seed", 7, "--count", 3, "--steps", 2)["pictures"]
    alone = make(CAPTION, "--seed", 9, "--steps", 2, out="alone")["pictures"]
    assert (pixels(many[2]["path"]) == pixels(alone[0]["path"])).all()


def test_a_picture_hardly_depends_on_the_batch_size(make):
    single = make(CAPTION, "--seed", 7, "--count", 3, "--steps", 2)["pictures"]
    batched = make(CAPTION, "--seed", 7, "--count", 3, "--steps", 2, "--batch-size", 3, out="b")
    for one, other in zip(single, batched["pictures"], strict=True):
        difference = pixels(one["path"]).astype(int) - pixels(other["path"])
        assert abs(difference).max() <= 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_picture_is_made_again_bit_for_bit(run, make, tmp_path, batch_size):
    made = make(
        CAPTION, "-t", EXCITE, "--seed", 7, "--count", 3, "--steps", 4, "--guidance", 5,
        "--scheduler", "EulerDiscreteScheduler", "--batch-size", batch_size,
    )  # fmt: skip
    path = made["pictures"][1]["path"]
    ran = run("generate", "--from", path, "--out", tmp_path / "again", "--json")
    assert ran.code == 0, ran.err
    (again,) = ran.json["pictures"]
    assert again["identical"] is True
    assert (pixels(path) == pixels(again["path"])).all()
    assert read_record(path)["recipe"] == read_record(again["path"])["recipe"]


def test_making_a_picture_again_beside_it_keeps_the_first(run, make, tmp_path):
    path = make(CAPTION, "--seed", 7, "--steps", 2)["pictures"][0]["path"]
    ran = run("generate", "--from", path, "--out", tmp_path / "pictures")
    assert ran.code == 0, ran.err
    assert "identical to" in ran.out
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_compare_makes_the_same_seeds_with_and_without_and_a_sheet(make):
    made = make(CAPTION, "-t", EXCITE, "--seed", 3, "--count", 2, "--steps", 4, "--compare")
    plain = make(CAPTION, "--seed", 3, "--count", 2, "--steps", 4, out="plain")
    for with_twin, alone in zip(made["pictures"], plain["pictures"], strict=True):
        assert (pixels(with_twin["plain"]["path"]) == pixels(alone["path"])).all()
        assert (pixels(with_twin["path"]) != pixels(alone["path"])).any()
        assert read_record(with_twin["path"])["techniques"][0]["name"] == "attend-and-excite"
    assert Image.open(made["sheet"]).width > 2 * 192


def test_heat_maps_change_no_pixel(make):
    plain = make(CAPTION, "--seed", 3, "--steps", 2)
    mapped = make(CAPTION, "--seed", 3, "--steps", 2, "--heatmaps", "circle, square", out="heat")
    (picture,) = mapped["pictures"]
    assert (pixels(picture["path"]) == pixels(plain["pictures"][0]["path"])).all()
    assert set(picture["heatmaps"]) == {"circle", "square"}
    for path in (*picture["heatmaps"].values(), mapped["sheet"]):
        assert Image.open(path).mode == "RGB"


def test_a_grid_shows_all_pictures(make):
    made = make(CAPTION, "--count", 4, "--steps", 1, "--grid")
    assert Image.open(made["grid"]).width > 2 * 192


def test_a_random_seed_is_told_and_repeats_the_picture(run, make, tmp_path, tiny_model):
    ran = run("generate", CAPTION, "--model", tiny_model, "--steps", 1, "--out", tmp_path / "first")
    seed = ran.err.split("--seed ")[1].split(")")[0]
    (first,) = (tmp_path / "first").iterdir()
    again = make(CAPTION, "--seed", seed, "--steps", 1)["pictures"][0]["path"]
    assert (pixels(first) == pixels(again)).all()


def test_options_win_over_the_recipe(make, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"prompt: {CAPTION}\nseed: 1\nsteps: 2\ncount: 2\ntechniques: [heat-maps]\n")
    made = make("--recipe", recipe, "--seed", 5, "--count", 1)
    assert made["recipe"]["steps"] == 2
    assert [picture["seed"] for picture in made["pictures"]] == [5]


def test_a_list_of_prompts_makes_pictures_for_each(make, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("prompt: [a red circle, a blue square]\nseed: 1\nsteps: 1\n")
    made = make("--recipe", recipe, "--batch-size", 2)
    assert [(p["prompt"], p["seed"]) for p in made["pictures"]] == [
        ("a red circle", 1),
        ("a blue square", 2),
    ]


def test_a_technique_that_never_acts_is_told(run, tmp_path, tiny_model):
    ran = run(
        "generate", CAPTION, "--model", tiny_model, "--steps", 2, "--out", tmp_path,
        "-t", "attend-and-excite:subjects=circle,steps=20-25,thresholds={}",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "note: attend-and-excite acted at no step" in ran.err


def test_another_size_is_drawn(make):
    made = make(CAPTION, "--steps", 1, "--size", "96x64")
    assert Image.open(made["pictures"][0]["path"]).size == (96, 64)


def test_the_same_command_twice_leaves_the_same_files(make, tmp_path):
    for _ in range(2):
        make(CAPTION, "--seed", 1, "--steps", 1, "-t", EXCITE, "--compare")
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_plain_lines_tell_the_progress_where_there_is_no_terminal(run, tmp_path, tiny_model):
    ran = run(
        "generate", CAPTION, "--model", tiny_model, "--steps", 1, "--count", 2,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "picture 1 of 2: seed" in ran.err
    assert "s left)" in ran.err
    assert len(ran.out.splitlines()) == 2


def test_quiet_prints_nothing_but_the_files(run, tmp_path, tiny_model):
    ran = run(
        "generate", CAPTION, "--model", tiny_model, "--steps", 1, "--seed", 1, "--quiet",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert ran.err == ""
    assert ran.out.strip().endswith(".png")


def test_a_folder_that_cannot_be_written_is_a_failure_not_a_mistake(run, tmp_path, tiny_model):
    (tmp_path / "file").write_text("in the way")
    ran = run(
        "generate", CAPTION, "--model", tiny_model, "--steps", 1, "--seed", 1,
        "--out", tmp_path / "file",
    )  # fmt: skip
    assert ran.code == 1
    assert "file" in ran.err
    assert "Traceback" not in ran.err


def test_running_out_of_memory_tells_what_to_do(run, monkeypatch, tmp_path, tiny_model):
    def too_much(*arguments, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 99 GiB")

    monkeypatch.setattr(studio, "draw", too_much)
    ran = run("generate", CAPTION, "--model", tiny_model, "--out", tmp_path / "out")
    assert ran.code == 1
    assert "--batch-size" in ran.err


@pytest.mark.parametrize("prompt", ["", "🟦 שלום", "x " * 300])
def test_odd_prompts_are_drawn(make, prompt):
    (picture,) = make(prompt, "--seed", 1, "--steps", 1)["pictures"]
    assert read_record(picture["path"])["recipe"]["prompt"] == prompt


@pytest.mark.slow
def test_interrupting_keeps_finished_pictures_and_exits_130(tmp_path, tiny_model):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "attnctl", "generate", CAPTION, "--model", str(tiny_model)]
    command += ["--count", "5000", "--steps", "2", "--seed", "1", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (out.exists() and any(out.glob("*.png"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    pictures = list(out.iterdir())
    assert pictures
    for picture in pictures:
        assert picture.suffix == ".png"
        Image.open(picture).load()
