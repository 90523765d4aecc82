"""What ``bench edit`` prints: a Markdown table and what its reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attnctl.bench.edit.comparison import Line
from attnctl.bench.edit.measure import Edits
from attnctl.bench.edit.methods import Method
from attnctl.bench.markdown import markdown
from attnctl.bench.statistics import Interval
from attnctl.cli.tables import print_json
from attnctl.files import write_text

HEAD = (
    "method", "reached %", "kept %", "success %", "PSNR dB", "SSIM", "PSNR, against regenerated",
    "SDEdit at equal PSNR %", "gain in success", "beats SDEdit",
)  # fmt: skip


def edit_table(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Cells under `HEAD`, one row a method."""
    return [
        (
            line.method,
            *(_percent(value) for value in (line.reached, line.kept, line.success)),
            _number(line.psnr, ".1f"),
            _number(line.ssim, ".3f"),
            "" if line.gained_psnr is None else _number(line.gained_psnr, "+.1f"),
            "" if line.sdedit is None else f"{100 * line.sdedit:.1f}",
            "" if line.gained_success is None else _percent(line.gained_success, "+.1f"),
            line.verdict,
        )
        for line in lines
    ]


def kind_table(lines: Sequence[Line]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and cells: success in percent by kind of edit."""
    kinds = list(lines[0].by_kind)
    rows = [(x.method, *(f"{100 * x.by_kind[kind]:.0f}" for kind in kinds)) for x in lines]
    return ("success %", *kinds), rows


def edit_text(done: Edits, chosen: Sequence[Method] | None = None) -> str:
    """The whole text: tables, notes, the choice of a sweep."""
    settings = done.record["settings"]
    losers = [line.method for line in done.lines if line.verdict == "no"]
    open_ = [line.method for line in done.lines if line.verdict == "not shown"]
    parts = [
        f"Edits on `{settings['model']}`: {settings['count']} a method, {settings['split']} list,"
        f" {settings['steps']} steps, guidance {settings['guidance']:g}.",
        markdown(HEAD, edit_table(done.lines)),
        "Reached: the verifier sees what was asked for. Kept: every untouched object is seen near"
        " its place. Success: both. PSNR and SSIM: to the source, outside the edited region."
        " 95 percent intervals: Wilson for shares, bootstrap over edits for means and (paired)"
        " differences. SDEdit at equal PSNR: success of SDEdit where its mean PSNR is the"
        " method's, between the strengths of the table. The gain is compared with 0: `not shown`"
        " means that its interval holds 0. Intervals are not corrected for the number of methods.",
        markdown(*kind_table(done.lines)),
        f"Does not beat SDEdit at equal preservation: {', '.join(losers) or 'none'}. Not shown"
        f" either way: {', '.join(open_) or 'none'}.",
    ]
    if chosen is not None:
        parts.append("Chosen:\n" + "\n".join(f"- {m.name}: {dict(m.settings)}" for m in chosen))
    return "\n\n".join(parts) + "\n"


def save_text(done: Edits, name: str, chosen: Sequence[Method] | None = None) -> Path:
    """Write the text into the folder of the measurement."""
    return write_text(done.folder / f"{name}.md", edit_text(done, chosen))


def print_edits(
    done: Edits,
    files: Mapping[str, Path],
    chosen: Sequence[Method] | None,
    *,
    as_json: bool,
) -> None:
    """Print the text, or the record with the choice and the files."""
    shown = {name: str(path) for name, path in files.items()}
    if as_json:
        choice = {} if chosen is None else {"chosen": [m.to_plain() for m in chosen]}
        print_json({**done.record, **choice, "files": shown})
        return
    listed = "\n".join(f"{name}: {path}" for name, path in shown.items())
    print(f"{edit_text(done, chosen)}\n{listed}")  # noqa: T201


def _percent(value: tuple[float, Interval], form: str = ".1f") -> str:
    share, (low, high) = value
    return _number((100 * share, (100 * low, 100 * high)), form)


def _number(value: tuple[float, Interval], form: str) -> str:
    middle, (low, high) = value
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"
