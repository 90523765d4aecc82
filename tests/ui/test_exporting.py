"""What the page exports makes the same pictures elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from attnctl.cli.technique_text import read_technique
from attnctl.recipes import Recipe
from attnctl.ui.exporting import command_of, export, python_of

EXCITING = {
    "attend-and-excite": {
        "subjects": ["circle", "square"], "steps": "0-50%", "scale_factor": 4, "thresholds": {}
    }
}  # fmt: skip
SOFT = {"soft-pag": {"scale": 2.0, "where": "layers=3,heads=0+5", "target": "query-mean"}}
FULL = Recipe.from_dict(
    {
        "prompt": 'it\'s "a" red circle; $(rm -rf /) `x`',
        "negative": "--seed 4",
        "seed": 3,
        "steps": 2,
        "guidance": 4.5,
        "size": "64x64",
        "count": 2,
        "scheduler": "EulerDiscreteScheduler",
        "techniques": [EXCITING, SOFT, "seg"],
    }
)


def read_command(line: str) -> dict[str, Any]:
    words = shlex.split(line)
    assert words[:2] == ["attnctl", "generate"]
    found: dict[str, Any] = {"prompt": words[2], "techniques": []}
    rest = iter(words[3:])
    for word in rest:
        if word == "-t":
            found["techniques"].append(read_technique(next(rest)))
        elif word == "--compare":
            found["compare"] = True
        else:
            found[word.removeprefix("--")] = next(rest)
    return found


def test_a_command_line_says_what_the_recipe_says() -> None:
    read = read_command(command_of(FULL, compare=True))
    assert read.pop("compare")
    for name in ("seed", "count", "steps"):
        read[name] = int(read[name])
    read["guidance"] = float(read["guidance"])
    assert Recipe.from_dict(read) == FULL


def test_a_value_that_no_option_can_write_goes_through_the_recipe_file() -> None:
    odd = Recipe.from_dict(
        {"prompt": "a", "techniques": [{"nag": {"negative_prompt": 'a "b" \\'}}]}
    )
    assert command_of(odd) == "attnctl generate --recipe recipe.yaml"


def test_a_recipe_is_read_back_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(export(FULL).recipe, encoding="utf-8")
    assert Recipe.from_file(file) == FULL


@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler"])
def test_the_python_snippet_draws_the_same_picture(
    scheduler: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import attnctl
    from attnctl.imaging import open_picture
    from attnctl.pipelines.fitting import resolve
    from attnctl.pipelines.text_to_image import draw

    monkeypatch.chdir(tmp_path)
    recipe = FULL.changed(
        prompt="a red circle and a blue square", negative=None, techniques=[EXCITING, "seg"]
    )
    values = {key: value for key, value in recipe.to_dict().items() if key != "scheduler"}
    recipe = Recipe.from_dict({**values, **({"scheduler": scheduler} if scheduler else {})})
    exec(compile(python_of(recipe), "snippet", "exec"), {})
    pipe = attnctl.load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    for made in draw(pipe, resolve(recipe, pipe)):
        again = open_picture(tmp_path / f"{made.recipe.seed}.png")
        assert again.tobytes() == made.image.tobytes()
