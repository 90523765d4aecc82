"""The package list in pyproject.toml is written by hand: compare it with the folders."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_on_disk_is_installed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for top in ("attnctl", "pipelines", "ui")
               for path in (ROOT / top).rglob("__init__.py")}  # fmt: skip
    names = {
        ".".join(folder.parts if folder.parts[0] == "attnctl" else ("attnctl", *folder.parts))
        for folder in folders
    }
    assert set(setup["packages"]) == names


def test_tested_versions_satisfy_what_the_package_asks_for():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    extras = project["optional-dependencies"].values()
    for text in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:  # an extra that takes others in
            continue
        assert tested[requirement.name] in requirement.specifier, text
