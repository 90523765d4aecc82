"""The page that says which steering works repeats the table that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attnctl.bench.effect.glance import is_first
from attnctl.bench.effect.lines import HARMS, HELPS, EffectLine
from attnctl.bench.effect.table import conclude
from attnctl.bench.effect.text import HEAD, SHARES, settings_of, table_rows

ROOT = Path(__file__).parents[2]
FOLDER, PAGE = ROOT / "benchmarks/effect", ROOT / "docs/effect.md"


def told(title: str) -> list[str]:
    """Rows of the table under a title of the page, without its head."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


def row_of(cells: dict[str, str], name: str) -> str:
    unit = " %" if cells["measure"] in SHARES else ""
    numbers = f"{cells['baseline']} -> {cells['steered']}{unit}, {cells['difference [95 %]']}"
    number = cells["technique"].removeprefix(name)
    what = f"{cells['measure']}: {numbers}, beside {cells['beside']}"
    return f"| `{cells['model']}` | `{name}`{number} | {what} | {cells['N']} |"


def written() -> list[EffectLine]:
    record = json.loads((FOLDER / "effect.json").read_text(encoding="utf-8"))
    return [EffectLine.of_plain(values) for values in record["lines"]]


@pytest.mark.parametrize(("title", "verdict"), [("What helps", HELPS), ("What harms", HARMS)])
def test_the_page_lists_what_the_table_says(title: str, verdict: str) -> None:
    lines = written()
    wanted = [line for line in lines if line.claimed and line.verdict == verdict and is_first(line)]
    rows = table_rows(wanted, settings_of(lines))
    cells = [dict(zip(HEAD, row, strict=True)) for row in rows]
    names = [line.technique for line in wanted]
    assert told(title) == [row_of(c, name) for c, name in zip(cells, names, strict=True)]


def test_the_table_is_made_of_the_parts_beside_it(tmp_path: Path) -> None:
    for part in FOLDER.glob("*/part.json"):
        copy = tmp_path / part.parent.name
        copy.mkdir()
        for file in ("part.json", "costs.json"):
            (copy / file).write_bytes((part.parent / file).read_bytes())
    made = conclude(tmp_path).lines
    assert [x for x in made if x.count] == [x for x in written() if x.count]
