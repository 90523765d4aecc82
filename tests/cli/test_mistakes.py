"""A user's mistake is one or two lines that tell the remedy, exit code 2, and nothing written."""

import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

CAPTION = "a red circle and a blue square"


@pytest.fixture
def refuse(run, tmp_path, tiny_model):
    def generate(*arguments, model=tiny_model):
        out = tmp_path / "pictures"
        ran = run("generate", *arguments, "--model", model, "--steps", 2, "--out", out)
        assert ran.code == 2, ran.err
        assert ran.out == ""
        assert not out.exists()
        lines = ran.err.strip().splitlines()
        lines = [line for line in lines if not line.startswith("seed ")]
        assert 1 <= len(lines) <= 2, ran.err
        assert "Traceback" not in ran.err
        return " ".join(lines)

    return generate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-t", "attend-and-exite"], "did you mean 'attend-and-excite'?"),
        (["-t", "attend-and-excite:subject=circle"], "did you mean 'subjects'?"),
        (["-t", "attend-and-excite:subjects=circle,steps=50%-20%"], "starts after it stops"),
        (["-t", "attend-and-excite:subjects=circle,steps=soon"], "cannot read steps='soon'"),
        (["-t", "attend-and-excite:subjects=circle,where=nowhere"], "unknown term 'nowhere'"),
        (["-t", "attend-and-excite:subjects=circle,where=heads=9"], "head 9"),
        (["-t", "attend-and-excite:subjects=triangle"], "triangle"),
        (["--heatmaps", "circle,dragon"], "'dragon' is not in the prompt"),
        (["--heatmaps", ","], "names no word"),
        (["--size", "65x64"], "must be multiples of 8"),
        (["--size", "big"], "'big' is no size"),
        (["--seed", "-1"], "seed"),
        (["--count", "0"], "count"),
        (["--guidance", "nan"], "finite"),
        (["--recipe", "nowhere.yaml"], "there is no file 'nowhere.yaml'"),
        (["--compare"], "--compare needs a technique"),
        (["--dtype", "fp64"], "did you mean"),
        (["--device", "cuda:99"], "not there"),
        (["--offload", "disk"], "--offload 'disk'"),
        pytest.param(
            ["--offload", "model"],
            "there is no GPU; leave it out",
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU"),
        ),
        (["--kernel", "magic"], "--kernel 'magic'"),
        (["--scheduler", "DDIMSchedular"], "did you mean 'DDIMScheduler'"),
        (["--sede", "3"], "--seed"),
        (["--seed", "x"], "--seed"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_a_bad_option_is_explained(refuse, arguments, message):
    assert message in refuse(CAPTION, *arguments)


def test_an_unknown_model_is_explained(refuse):
    assert "no-such-model" in refuse(CAPTION, model="no-such-model")


def test_a_missing_prompt_is_explained(refuse):
    assert "no prompt" in refuse()


def test_every_mistake_of_a_recipe_has_its_line(refuse, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("prompt: a red circle\ntechniques:\n  - attend-and-exite\n")
    assert f"{recipe}:3: unknown technique" in refuse("--recipe", recipe)


def test_remaking_a_missing_picture_is_explained(run):
    ran = run("generate", "--from", "nowhere.png")
    assert (ran.code, ran.out) == (2, "")
    assert "no picture file 'nowhere.png'" in ran.err


@pytest.mark.parametrize("name", ["foreign.png", "photo.jpg"])
def test_remaking_a_picture_without_a_recipe_is_explained(run, tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    ran = run("generate", "--from", tmp_path / name, "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert "recipe" in ran.err
    assert not (tmp_path / "out").exists()


def test_remaking_refuses_options_that_would_change_the_picture(run, tmp_path):
    ran = run("generate", "--from", tmp_path / "a.png", "--seed", 3, "-t", "pag")
    assert ran.code == 2
    assert "leave out --seed, -t" in ran.err


def test_describing_an_unknown_technique_gives_the_nearest_name(run):
    ran = run("describe", "heat-map")
    assert ran.code == 2
    assert "did you mean 'heat-maps'?" in ran.err


def test_an_unknown_command_is_explained(run):
    ran = run("generat")
    assert ran.code == 2
    assert "generate" in ran.err


def test_debug_shows_the_traceback(run):
    ran = run("describe", "heat-map", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.err


def test_help_answers_without_loading_torch():
    code = (
        "import sys; from attnctl.cli import main; main(['generate', '--help']);"
        "assert 'torch' not in sys.modules, 'help imports torch'"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    started = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "--heatmaps" in ran.stdout
    assert time.monotonic() - started < 5


def test_the_module_runs_like_the_command():
    ran = subprocess.run(
        [sys.executable, "-m", "attnctl", "--version"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0
    assert ran.stdout.startswith("attnctl ")
