import json
import subprocess
import sys

import pytest

from attnctl.cli import main


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("techniques", "name", {"attend-and-excite", "heat-maps"}),
        ("families", "family", set()),
        ("kernels", "kernel", set()),
        ("models", "model", set()),
    ],
)
def test_lists_are_tables_and_json(run, kind, name, expected):
    table = run("list", kind)
    assert table.code == 0, table.err
    rows = run("list", kind, "--json").json[kind]
    assert expected <= {row[name] for row in rows}
    for row in rows:
        assert row[name] in table.out


def test_a_technique_is_described_with_its_parameters(run):
    text = run("describe", "attend-and-excite").out
    assert "AttendAndExcite" in text
    for parameter in ("subjects", "steps", "thresholds", "scale_factor", "resolution"):
        assert parameter in text
    described = run("describe", "attend-and-excite", "--json").json
    assert described["name"] == "attend-and-excite"
    assert {p["name"] for p in described["parameters"]} >= {"subjects", "where", "steps"}


def test_inspecting_a_model_shows_its_attention_sites(run, tiny_model):
    assert "attn2" in run("inspect", tiny_model).out
    sites = run("inspect", tiny_model, "--json").json["sites"]
    assert {site["kind"] for site in sites} == {"self", "cross"}
    assert {site["stage"] for site in sites} == {"down", "mid", "up"}
    assert all(site["heads"] == 2 for site in sites)


def test_inspecting_a_picture_shows_a_recipe_that_can_be_used(run, tmp_path, tiny_model):
    made = run(
        "generate", "a red circle", "--model", tiny_model, "--steps", 1, "--seed", 4,
        "--out", tmp_path, "--json",
    )  # fmt: skip
    path = made.json["pictures"][0]["path"]
    shown = run("inspect", path)
    recipe = tmp_path / "again.yaml"
    assert "prompt: a red circle\n" in shown.out
    recipe.write_text(shown.out)
    again = run("generate", "--recipe", recipe, "--out", tmp_path / "again", "--json")
    assert again.json["pictures"][0]["seed"] == 4
    assert run("inspect", path, "--json").json["recipe"]["prompt"] == "a red circle"


def test_inspecting_an_unknown_model_is_a_mistake(run):
    ran = run("inspect", "no-such-model")
    assert ran.code == 2
    assert "no-such-model" in ran.err


def test_the_doctor_tells_versions_devices_kernels_and_what_is_missing(run):
    text = run("doctor").out
    for word in ("torch", "diffusers", "cpu", "matplotlib", "kernel"):
        assert word in text
    found = run("doctor", "--json").json
    assert found["versions"]["torch"]
    assert found["devices"][0]["device"] == "cpu"


def test_json_is_one_object_on_stdout():
    ran = subprocess.run(
        [sys.executable, "-m", "attnctl", "list", "kernels", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert isinstance(json.loads(ran.stdout), dict)


def test_no_command_shows_the_help(capsys):
    main([])
    assert "generate" in "".join(capsys.readouterr())
