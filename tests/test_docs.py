"""The examples of the documentation run, and its tables are complete."""

import re
import runpy
from pathlib import Path

import pytest
import torch

import attnctl
from attnctl import families, registry
from attnctl.recipes import Recipe

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.fixture
def same_registries_afterwards(monkeypatch):
    registry.techniques()
    families.find_family(torch.nn.Identity())
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setattr(families, "_families", dict(families._families))


def blocks(page, language):
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("same_registries_afterwards")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "example"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page}:block{number}", "exec"), names)


@pytest.mark.slow
@pytest.mark.usefixtures("same_registries_afterwards")
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_the_example_scripts_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [path.name])
    runpy.run_path(str(path), run_name="__main__")
    assert "are in" in capsys.readouterr().out
    assert list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_the_recipes_of_the_docs_are_valid(page, tmp_path):
    for text in blocks(page, "yaml"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        Recipe.from_file(path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_example_recipes_are_valid(path):
    Recipe.from_file(path)


def test_the_two_ways_of_writing_a_schedule_agree():
    text = (ROOT / "docs" / "concepts.md").read_text()
    rows = re.findall(r"^\| `(attnctl\.[^`]+)` \| `([^`]+)` \|", text, re.MULTILINE)
    assert len(rows) >= 6
    for python, plain in rows:
        assert eval(python, {"attnctl": attnctl}) == attnctl.Schedule.parse(plain), python


def test_the_readme_lists_every_technique():
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == sorted(rows)
    assert set(rows) == set(registry.techniques())


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target
