"""What ``bench guidance`` prints: a Markdown table and what its reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attnctl.bench.guidance.measure import Guidance
from attnctl.bench.guidance.settings import Setting
from attnctl.bench.markdown import markdown
from attnctl.bench.quality import Distance
from attnctl.bench.tally import Line
from attnctl.cli.tables import print_json

HEAD = (
    "condition", "all right %", "exact %", "too few objects %", "exact, against CFG", "p",
    "Fréchet distance", "distance, against CFG", "rows", "time",
)  # fmt: skip


def guidance_table(done: Guidance) -> list[tuple[str, ...]]:
    """Cells under `HEAD`, one row a condition, then the floor of rendered scenes."""
    distances = {row.condition: row for row in done.frechet.rows}
    costs = {cost["condition"]: cost for cost in done.costs}
    rows: list[tuple[str, ...]] = []
    for name in done.conditions:
        exact = done.line("exact", name)
        shares = [_share(done.line(m, name)) for m in ("all right", "exact", "too few objects")]
        change = (_change(exact), "" if exact.p_value is None else f"{exact.p_value:.2g}")
        cost = costs[name]
        rows.append(
            (name, *shares, *change, *_distance(distances[name]), str(cost["rows"]),
             f"{cost['time_ratio']:.2f}")
        )  # fmt: skip
    low, high = done.frechet.floor_interval
    floor = f"{done.frechet.floor:.2f} [{low:.2f}, {high:.2f}]"
    rows.append(("rendered scenes", *[""] * 5, floor, "", "", ""))
    return rows


def guidance_text(
    done: Guidance, files: Mapping[str, Path], chosen: Sequence[Setting] | None = None
) -> str:
    """The whole text: table, notes, the choice of a sweep, files."""
    settings = done.record["settings"]
    pictures = done.line("exact", done.conditions[0]).count
    others = len(done.conditions) - 1
    parts = [
        markdown(HEAD, guidance_table(done)),
        f"{pictures} pictures a condition, {settings['split']} prompts, {settings['steps']} steps,"
        f" CFG {settings['guidance']:g}. 95 percent intervals: Wilson for shares, Newcombe for"
        " paired differences in points, bootstrap for distances (paired for differences). p: exact"
        " McNemar test of exact pictures against CFG, two-sided, not corrected for"
        f" {others} comparisons. Distances to rendered scenes of the same prompts in features of"
        " the scene classifier, lower is better; so few pictures bias every distance upwards, as"
        " the row of fresh rendered scenes shows. Rows: denoiser inputs a picture and step. Time:"
        " median ratio to CFG.",
    ]
    if chosen is not None:
        listed = [f"- {s.name}: scale {s.scale:g}, strength {s.strength:g}, {s.place}"
                  for s in chosen]  # fmt: skip
        parts.append("Chosen:\n" + "\n".join(listed))
    parts.append("\n".join(f"{name}: {path}" for name, path in files.items()))
    return "\n\n".join(parts)


def print_guidance(
    done: Guidance,
    files: Mapping[str, Path],
    chosen: Sequence[Setting] | None,
    *,
    as_json: bool,
) -> None:
    """Print the text, or the record with the choice and the files."""
    if not as_json:
        print(guidance_text(done, files, chosen))  # noqa: T201
        return
    choice = {} if chosen is None else {"chosen": [setting.to_plain() for setting in chosen]}
    print_json({**done.record, **choice, "files": {n: str(p) for n, p in files.items()}})


def _share(line: Line) -> str:
    low, high = line.interval
    return f"{100 * line.share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _change(line: Line) -> str:
    if line.difference is None or line.difference_interval is None:
        return ""
    low, high = line.difference_interval
    return f"{100 * line.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _distance(row: Distance) -> tuple[str, str]:
    low, high = row.interval
    mine = f"{row.distance:.2f} [{low:.2f}, {high:.2f}]"
    if row.difference is None or row.difference_interval is None:
        return mine, ""
    low, high = row.difference_interval
    return mine, f"{row.difference:+.2f} [{low:+.2f}, {high:+.2f}]"
