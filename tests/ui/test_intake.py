"""What visitors send is checked before it is built: no model, file or address of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from attnctl.errors import AttnctlError, RecipeError, SettingError
from attnctl.imaging import save_png
from attnctl.ui import Limits, StudioSettings
from attnctl.ui.failures import explain
from attnctl.ui.form import Form
from attnctl.ui.intake import read_recipe
from attnctl.ui.presets import load_presets
from attnctl.ui.restoring import read_dropped
from attnctl.ui.stage import error_html
from attnctl.ui.timeline import check_stack

MODELS = ("shapes",)
LIMITS = Limits()
HEADS = "heads:\n- {layer: 0, head: 0}\n"


def read(**values: Any):
    return read_recipe({"prompt": "a red circle", **values}, MODELS, LIMITS)


@pytest.mark.parametrize(
    "model",
    ["../shapes", "/etc", "runwayml/x", "http://169.254.169.254/x", "file:///etc", 3, ["x"]],
)
def test_only_models_that_are_offered_are_taken(model: Any) -> None:
    with pytest.raises(SettingError, match=r"is not offered; .*'shapes'"):
        read(model=model)


@pytest.mark.parametrize(
    "heads", ["/etc/passwd", "../heads.yaml", "file:///etc/passwd", "heads.yaml", "7", "C:\\x"]
)
@pytest.mark.parametrize("form", ["short", "long"])
def test_no_setting_names_a_file(heads: str, form: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("heads.yaml", "7"):
        Path(name).write_text(HEADS)
    entry: Any = {"soft-pag": {"heads": heads}}
    if form == "long":
        entry = {"name": "soft-pag", "parameters": {"heads": heads}}
    with pytest.raises(SettingError, match="reads no files"):
        read(techniques=[entry])
    (row,) = check_stack({"techniques": [{"name": "soft-pag", "parameters": {"heads": heads}}]})
    assert "error" in row


@pytest.mark.parametrize("name", ["portrait_masks", "target_masks"])
def test_no_list_names_files_either(name: str) -> None:
    boxes = [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    entry: dict[str, Any] = {"portrait_masks": boxes, "target_masks": boxes}
    (kept,) = read(techniques=[{"ir-diffusion": entry}]).techniques
    assert kept.name == "ir-diffusion"
    with pytest.raises(SettingError, match="reads no files"):
        read(techniques=[{"ir-diffusion": {**entry, name: [boxes[0], "/etc/passwd"]}}])


def test_heads_and_ranges_may_still_be_written_out() -> None:
    recipe = read(techniques=[{"soft-pag": {"heads": {"0": [1, 2]}}}, {"slg": {"blocks": "7-9"}}])
    assert [entry.name for entry in recipe.techniques] == ["soft-pag", "slg"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 17}, "count 17 is above the limit of 16"),
        ({"steps": 201}, "steps 201 is above the limit of 200"),
        ({"size": "4096x64"}, "size 4096x64 is above the limit"),
        ({"prompt": "x" * 2001}, "at most 2000"),
        ({"negative": "x" * 2001}, "at most 2000"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": ["a", "b"]}, "one prompt at a time"),
        ({"techniques": ["pag"] * 13}, "at most 12"),
        ({"techniques": "pag"}, "must be a list"),
        ({"techniques": [{"attend-and-excite": {"max_refinement_steps": 10**9}}]}, "at most"),
        ({"techniques": [{"attend-and-excite": {"thresholds": {10**9: 0.1}}}]}, "at most"),
        ({"techniques": ["pagg"]}, "did you mean 'pag'"),
        ({"out": "/etc"}, "unknown key 'out'"),
        ({"seed": float("nan")}, "seed"),
    ],
)
def test_more_than_the_limits_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AttnctlError, match=message):
        read(**fields)


def test_values_nested_without_end_are_refused() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(AttnctlError):
        read(techniques=[{"soft-pag": {"heads": deep}}])


def picture(path: Path, recipe: Any) -> Path:
    return save_png(Image.new("RGB", (8, 8)), path, {"recipe": recipe})


@pytest.mark.parametrize(
    "recipe",
    [
        {"prompt": "a", "model": "/etc"},
        {"prompt": "a", "techniques": [{"soft-pag": {"heads": "/etc/passwd"}}]},
        {"prompt": "a", "count": 10**6},
        {"prompt": {"$ref": "file:///etc/passwd"}},
        {"prompt": "a", "__class__": "os.system"},
        {"prompt": "a", "techniques": [{"../../x": {}}]},
    ],
)
def test_a_picture_with_a_hostile_recipe_is_refused(recipe: Any, tmp_path: Path) -> None:
    made = picture(tmp_path / "picture.png", recipe)
    with pytest.raises(AttnctlError) as caught:
        read_dropped(str(made), MODELS, LIMITS)
    assert "root:" not in str(caught.value)  # nothing of a file that it names
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"<svg onload=alert(1)>", b"\0" * 99]
)
def test_what_is_no_picture_is_refused_without_naming_folders(
    content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"'broken\.png'") as caught:
        read_dropped(str(file), MODELS, LIMITS)
    assert str(tmp_path) not in str(caught.value)


def test_a_dropped_recipe_file_is_no_more_trusted_than_a_picture(tmp_path: Path) -> None:
    good = tmp_path / "recipe.yaml"
    good.write_text("prompt: a red circle\nseed: 3\n")
    assert read_dropped(str(good), MODELS, LIMITS).seed == 3
    for text in ("prompt: !!python/object:os.system x", "model: /etc\nprompt: a", "- just a list"):
        good.write_text(text)
        with pytest.raises(AttnctlError):
            read_dropped(str(good), MODELS, LIMITS)
    good.write_bytes(b"prompt: " + b"x" * 2**21)
    with pytest.raises(RecipeError, match="too large"):
        read_dropped(str(good), MODELS, LIMITS)


@pytest.mark.parametrize("stack", [None, [], "x", {"techniques": 3}, {"techniques": ["pag"]}])
def test_a_stack_of_another_form_is_no_stack(stack: Any) -> None:
    assert check_stack(stack) == []


def test_a_form_reads_its_stack_and_draws_a_seed() -> None:
    settings = StudioSettings(models=MODELS)
    cards = [
        {"name": "pag", "on": True, "parameters": {"scale": 2, "steps": "0-50%"}},
        {"name": "seg", "on": False, "parameters": {"sigma": "no number"}},
    ]
    form = Form("a red circle", seed=4.0, stack={"techniques": cards}, count=2.0)
    order = form.order(settings)
    assert order.recipe.to_dict()["techniques"] == [{"pag": {"scale": 2, "steps": "0-50%"}}]
    assert (order.recipe.seed, order.recipe.count) == (4, 2)
    again = Form.of(order.recipe, compare=True, maps="off").order(settings)
    assert again.recipe == order.recipe
    fresh = [Form("a red circle", seed=4, is_new_seed=True).order(settings) for _ in range(3)]
    assert len({one.recipe.seed for one in fresh}) == 3


def test_errors_are_escaped_and_say_nothing_of_the_machine() -> None:
    page = error_html('<script>alert(1)</script> "quoted"\n& more')
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert explain(OSError(28, "No space left on device", "/secret/place")) == (
        "the result could not be saved: No space left on device"
    )
    assert "secret" not in explain(KeyError("/secret/place"))


def test_every_preset_can_be_started_from() -> None:
    settings = StudioSettings()
    presets = load_presets(settings.models)
    assert "both objects" in presets
    for recipe in presets.values():
        order = Form.of(recipe, compare=True, maps="off").order(settings)
        assert order.recipe.to_dict() == {**recipe.to_dict(), "seed": 0, "count": 1}
    assert load_presets(("another/model",)) == {}


def test_presets_of_the_operator_join_those_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "my-own.yaml").write_text("prompt: a green cross\ntechniques: [pag]\n")
    presets = load_presets(MODELS, tmp_path)
    assert presets["my own"].prompt == "a green cross"
    (tmp_path / "broken.yaml").write_text("prompts: x\n")
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        load_presets(MODELS, tmp_path)
