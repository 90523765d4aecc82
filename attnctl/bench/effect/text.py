"""The table of effects as Markdown, and what ``bench effect`` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.bench.effect.clips import SUCCESS as SHOWN
from attnctl.bench.effect.edits import AT_EQUAL, PRESERVED
from attnctl.bench.effect.edits import SUCCESS as EDITED
from attnctl.bench.effect.glance import GLANCE_HEAD, glance_rows
from attnctl.bench.effect.lines import HARMS, HELPS, NOTHING_SEEN, UNMEASURED, EffectLine
from attnctl.bench.effect.long import KEPT
from attnctl.bench.effect.long import RIGHT as LONG_RIGHT
from attnctl.bench.effect.motion import RIGHT, WHOLE
from attnctl.bench.effect.scenes import ANSWERS
from attnctl.bench.effect.settings import ABSENT, ALL_RIGHT, CHANGED, EXACT, MISSING, NEGLECT
from attnctl.bench.effect.table import COSTS_FILE, RESULT_FILE, Effect
from attnctl.bench.markdown import markdown
from attnctl.cli.tables import print_json
from attnctl.files import write_text

TABLE_FILE, COSTS_TABLE_FILE = "effect.md", "effect-costs.md"
HEAD = (
    "model", "technique", "measure", "N", "beside", "baseline", "steered",
    "difference [95 %]", "p", "p, Holm", "verdict", "note",
)  # fmt: skip
SETTINGS_HEAD = ("model", "technique", "setting", "chosen in")
COSTS_HEAD = ("suite", "model", "condition", "seconds", "times as long", "as")
SHARES = {
    *(ALL_RIGHT, EXACT, ABSENT, NEGLECT, MISSING, CHANGED, EDITED, AT_EQUAL, SHOWN, RIGHT, WHOLE),
    *(*ANSWERS, LONG_RIGHT, KEPT),
}
"""Measures that are shown in percent, their differences in points."""


def settings_of(lines: Sequence[EffectLine]) -> dict[tuple[str, str, str], tuple[str, str]]:
    """Shown name and source of every setting, by model, technique and setting.

    A technique that was measured with several settings on a model has them numbered.
    """
    listed = dict.fromkeys((x.model, x.technique, x.setting) for x in lines if x.setting)
    sources = {(x.model, x.technique, x.setting): x.source for x in lines}
    shown: dict[tuple[str, str, str], tuple[str, str]] = {}
    for one in listed:
        mine = [other for other in listed if other[:2] == one[:2]]
        number = f" ({mine.index(one) + 1})" if len(mine) > 1 else ""
        shown[one] = (one[1] + number, sources[one])
    return shown


def table_rows(
    lines: Sequence[EffectLine], settings: Mapping[tuple[str, str, str], tuple[str, str]]
) -> list[tuple[str, ...]]:
    """Cells under `HEAD`, with the names of `settings_of`."""
    return [_row(x, settings[x.model, x.technique, x.setting][0]) for x in lines]


def _row(line: EffectLine, shown: str) -> tuple[str, ...]:
    show = _form(line.measure)
    tests = tuple("" if p is None else f"{p:.2g}" for p in (line.p_value, line.p_holm))
    numbers = tuple("" if x is None else show(x) for x in (line.baseline, line.steered))
    return (
        *(line.model, shown, line.measure, str(line.count)),
        *(line.baseline_name, *numbers, _change(line), *tests, line.verdict, line.note),
    )


def _change(line: EffectLine) -> str:
    """Difference and interval."""
    if line.interval is None:
        return ""
    low, high = line.interval
    signed = _form(line.measure, "+" if line.difference is not None else "")
    middle = "" if line.difference is None else f"{_difference(line)} "
    return f"{middle}[{signed(low)}, {signed(high)}]"


def _difference(line: EffectLine) -> str:
    """The difference alone; of a line without a baseline its mean."""
    if line.difference is None:
        return "" if line.steered is None else _form(line.measure)(line.steered)
    return _form(line.measure, "+")(line.difference)


def _form(measure: str, sign: str = "") -> Callable[[float], str]:
    """How numbers of a measure are written."""
    if measure in SHARES:
        return lambda value: f"{100 * value:{sign}.1f}"
    digits = 1 if measure == PRESERVED or measure.endswith("dB") else 4 if "error" in measure else 2
    return lambda value: f"{value:{sign}.{digits}f}"


def effect_text(done: Effect) -> str:
    """The whole text: a glance, claims, all else, what is not measured, how to read it."""
    claimed = [line for line in done.lines if line.claimed]
    others = [line for line in done.lines if not line.claimed and line.verdict != UNMEASURED]
    absent = [line for line in done.lines if line.verdict == UNMEASURED]
    parts = ["# Which steering works", _counts(claimed), *_splits(done)]
    if claimed:
        parts += ["## At a glance", markdown(GLANCE_HEAD, glance_rows(claimed, _difference))]
    settings = settings_of(done.lines)
    for title, listed in (("What each technique claims", claimed), ("All else", others)):
        if listed:
            parts += [f"## {title}", markdown(HEAD, table_rows(listed, settings))]
    if settings:
        rows = [(key[0], name, key[2], source) for key, (name, source) in settings.items()]
        parts += ["## Settings", markdown(SETTINGS_HEAD, rows)]
    parts += ["## Not measurable here", *_absent(absent)]
    if done.missing:
        parts += ["## Not measured yet in this folder", _missing(done)]
    return "\n\n".join([*parts, "## How to read it", NOTES]) + "\n"


NOTES = """\
- At a glance: differences of what a technique claims. Two numbers are two settings, or two things
  that it stands beside. Nothing seen says that the cases do not tell, not that there is no effect.
- Everything is compared in pairs: the same prompts and seeds, edits or clips, with and without the
  technique. N is the number of pairs; for missing objects that of named objects.
- Shares in percent, their differences in points. Intervals: Newcombe's method 10 for shares,
  bootstrap for means, success at equal preservation and distances. A line without a baseline has
  the interval of its mean.
- p: exact McNemar test for yes-or-no outcomes, sign test over edits or clips for numbers, both
  two-sided. **It is not corrected for the number of comparisons.** Holm's correction stands beside
  it, over all lines of the first table that have a p. A distance belongs to a set of pictures, so
  it has an interval and no p.
- Helps or harms: the interval leaves out 0, and p is below 0.05 where there is one. All else is no
  measurable effect, which is what a technique that claims to change nothing hopes for.
- Success at equal preservation: beside SDEdit between two strengths, where its mean PSNR is the
  method's. Its p is that of the bootstrap that gives its interval.
- Settings were chosen on tuning prompts, or come from the documents that the table of settings
  names; the pictures, edits and clips here are others, of another range of seeds.
- Times stand in a file of their own: they are no part of the table, which two runs repeat."""


def _counts(claimed: Sequence[EffectLine]) -> str:
    listed = [line.verdict for line in claimed]
    told = ", ".join(f"{listed.count(v)} {v}" for v in (HELPS, HARMS, NOTHING_SEEN))
    return f"{len(listed)} claims measured: {told}."


def _splits(done: Effect) -> list[str]:
    runs = done.record["runs"]
    if not runs:
        return []
    split = next(iter(runs.values()))["settings"]["split"]
    return [f"Prompts, edits and clips of the list `{split}`; {len(runs)} runs."]


def _absent(lines: Sequence[EffectLine]) -> list[str]:
    told = [f"- `{line.technique}` on `{line.model}`: {line.note}" for line in lines]
    return ["\n".join(told)] if told else []


def _missing(done: Effect) -> str:
    by_part: dict[tuple[str, str], list[str]] = {}
    for suite, model, name in done.missing:
        by_part.setdefault((suite, model), []).append(name)
    return "\n".join(
        f"- `--suite {suite} --model {model}`: {', '.join(names)}"
        for (suite, model), names in by_part.items()
    )


def costs_text(costs: Sequence[dict[str, Any]]) -> str:
    """Times as Markdown."""
    rows = [
        (
            *(cost["suite"], cost["model"], f"{cost['condition']} {cost['setting']}".strip()),
            *(_number(cost.get("seconds")), _number(cost.get("time_ratio")), cost["against"]),
        )
        for cost in costs
    ]
    return f"# What it costs\n\n{markdown(COSTS_HEAD, rows)}\n\n{COSTS_NOTES}\n"


COSTS_NOTES = """\
- At a glance: differences of what a technique claims. Two numbers are two settings, or two things
  that it stands beside. Nothing seen says that the cases do not tell, not that there is no effect.
Times differ from run to run. Seconds: medians for a picture or an edit, means for a clip. Times as
long: medians of ratios in pairs for pictures and fast attention (whole runs there), ratios of the
seconds else. The inversion that the edits of a source share counts for the first of them that needs
it."""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def save_text(done: Effect) -> dict[str, Path]:
    """Write both tables as Markdown.

    Returns:
        Paths of everything that a run leaves, by name.
    """
    files = {
        "table": write_text(done.folder / TABLE_FILE, effect_text(done)),
        "result": done.folder / RESULT_FILE,
        "costs": done.folder / COSTS_FILE,
        "costs table": write_text(done.folder / COSTS_TABLE_FILE, costs_text(done.costs)),
    }
    return files | {f"sheet, {name}": path for name, path in done.sheets.items()}


def print_effect(done: Effect, files: dict[str, Path], *, as_json: bool) -> None:
    """Print both tables, or the record with the times and the files."""
    shown = {name: str(path) for name, path in files.items()}
    if as_json:
        print_json({**done.record, "costs": done.costs, "files": shown})
        return
    listed = "\n".join(f"{name}: {path}" for name, path in shown.items())
    print(f"{effect_text(done)}\n{costs_text(done.costs)}\n{listed}")  # noqa: T201
