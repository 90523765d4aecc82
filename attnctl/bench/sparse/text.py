"""What ``bench sparse`` prints and writes: Markdown tables, and what their reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.bench.markdown import markdown
from attnctl.bench.sparse.measure import Sparse
from attnctl.cli.tables import print_json
from attnctl.files import write_text

FIDELITY_HEAD = (
    "way", "PSNR, dB", "SSIM", "gain over, dB", "least gain", "error of a layer: mean", "largest",
)  # fmt: skip
SPEED_HEAD = (
    "way", "whole run", "in CPU time", "at its steps", "in CPU time", "attention alone",
    "peak memory, MiB",
)  # fmt: skip
TABLE_FILE = "table.md"


def fidelity_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells under `FIDELITY_HEAD`, one row a way but dense."""
    beside = {way["name"]: way["beside"] for way in record["ways"]}
    rows: list[tuple[str, ...]] = []
    for line in record["fidelity"]:
        if "ssim" not in line:
            continue
        errors = list(line["layers"].values())
        mean = f"{100 * sum(errors) / len(errors):.1f} %" if errors else ""
        largest = f"{100 * max(errors):.1f} %" if errors else ""
        name = line["condition"]
        gain = _gain(line.get("gain"), beside[name])
        decibels = "equal" if line["psnr"] is None else f"{line['psnr']:.1f}"
        rows.append((name, decibels, f"{line['ssim']:.4f}", *gain, mean, largest))
    return rows


def _gain(gain: Mapping[str, Any] | None, other: str) -> tuple[str, str]:
    if gain is None:
        return "", ""
    low, high = gain["mean_interval"]
    text = f"{gain['mean']:+.1f} [{low:+.1f}, {high:+.1f}], {other}"
    return text, f"{gain['least']:+.1f}"


def speed_rows(speed: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Cells under `SPEED_HEAD`: times as fast as dense, quartiles of the rounds behind."""
    rows: list[tuple[str, ...]] = []
    for line in speed["lines"]:
        memory = f"{line['peak_bytes'] / 2**20:.0f}"
        names = ("whole", "whole_cpu", "acting", "acting_cpu", "attention")
        ratios = [_ratio(line.get(name)) for name in names]
        rows.append((line["condition"], *ratios, memory))
    rows += [(name, reason, *[""] * 5) for name, reason in speed["refused"].items()]
    return rows


def _ratio(value: Mapping[str, float] | None) -> str:
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]" if value else ""


def sparse_text(record: Mapping[str, Any]) -> str:
    """Tables and notes as Markdown."""
    parts: list[str] = []
    drawing = record["drawing"]
    pictures = max((line["pictures"] for line in record["fidelity"]), default=0)
    rows = fidelity_rows(record)
    if rows:
        parts += [
            f"## Pictures\n\n{drawing['model']} at {record['size_px']} pixels, {pictures} pictures"
            f" of {drawing['split']} prompts and seeds, {drawing['steps']} steps, guidance"
            f" {drawing['guidance']:g}; medians over pictures, against the dense picture.",
            markdown(FIDELITY_HEAD, rows),
            "Gain: mean over pictures with a 95 percent bootstrap interval, over the way that is"
            " named. Error of a layer: relative distance from dense attention on the same"
            " tensors, mean over its cheaper steps and then over layers, and the largest layer.",
        ]
    speed = record["speed"]
    if speed is not None:
        network, settings = speed["network"], speed["settings"]
        parts += [
            f"## Speed\n\n{network['name']}, {network['parameters'] / 1e6:.0f} M parameters in"
            f" {network['dtype']}, latents {network['latents']}, {settings['steps']} steps without"
            f" guidance, {settings['repeats']} rounds; {_machine(speed)}.",
            markdown(SPEED_HEAD, speed_rows(speed)),
            "Times as fast as dense attention: medians of the ratios of rounds in which both had a"
            " turn, A B B A, with quartiles. At its steps: where every site that it serves is"
            " served by something cheaper. Attention alone: the time inside those sites.",
        ]
        parts += [_agreement(one) for one in speed["agreement"]]
    parts += [f"- {reason}" for reason in record["absent"].values()]
    return "\n\n".join(parts)


def _agreement(one: Mapping[str, Any]) -> str:
    equal = "equal" if one["is_equal"] else "NOT EQUAL"
    where = "" if one["with_first_norms"] else ", on blocks without their first norm"
    return (
        f"- {one['peer']} and {one['ours']}: largest difference of the latents"
        f" {one['largest_difference']:.1e} of {one['largest_latent']:.1f} ({equal}{where}); effect"
        f" of the technique {one['effect']:.2g}"
    )


def _machine(speed: Mapping[str, Any]) -> str:
    machine = speed["machine"]
    loads = [load for line in speed["lines"] for load in line.get("load", [])]
    load = f", load of the machine {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    return f"{machine['name']}, {machine['threads']} thread(s){load}"


def print_sparse(done: Sparse, shown: int, *, as_json: bool) -> None:
    """Write table, plot and sheet, and print the tables or the record."""
    from attnctl.bench.sparse.measure import RESULT_FILE
    from attnctl.bench.sparse.pictures import save_plot, save_sheet

    text = sparse_text(done.record)
    files: dict[str, Path | None] = {
        "result": done.folder / RESULT_FILE,
        "table": write_text(done.folder / TABLE_FILE, text + "\n"),
        "sheet": save_sheet(done, shown),
        "plot": save_plot(done),
    }
    made = {name: str(path) for name, path in files.items() if path is not None}
    if as_json:
        print_json({**done.record, "files": made})
        return
    print(text)  # noqa: T201
    _print_files(made, files)


def _print_files(made: Mapping[str, str], files: Mapping[str, Path | None]) -> None:
    lines: Sequence[str] = [f"{name}: {path}" for name, path in made.items()]
    print("\n" + "\n".join(lines))  # noqa: T201
    if files["plot"] is None:
        print("no plot: matplotlib is missing (pip install 'attnctl[plots]')")  # noqa: T201
