"""Sheet and plot of the benchmark of fast attention."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from attnctl.bench.sparse.measure import Sparse
from attnctl.files import new_file
from attnctl.imaging import save_png
from attnctl.sheets import Cell, Row, draw_sheet

SHEET_FILE = "sheet.png"
PLOT_FILE = "plot.png"
LINE_INCHES = 0.28


def save_sheet(done: Sparse, shown: int) -> Path | None:
    """Draw the first prompts in every way, under each other; ``None`` without pictures.

    Args:
        done: A finished measurement.
        shown: Prompts on the sheet.
    """
    if not done.entries:
        return None
    prompts = list(dict.fromkeys(entry["id"] for entry in done.entries))[:shown]
    places = {(entry["condition"], entry["id"]): entry for entry in done.entries}
    names = list(dict.fromkeys(entry["condition"] for entry in done.entries))
    rows = [
        Row(name, [_cell(done, places[name, one]) for one in prompts if (name, one) in places])
        for name in names
    ]
    drawing = done.record["drawing"]
    title = (
        f"First prompts of the list, not picked; {drawing['model']} at"
        f" {done.record['size_px']} pixels, {drawing['steps']} steps; PSNR against dense"
    )
    save_png(draw_sheet(rows, title=title), done.folder / SHEET_FILE)
    return done.folder / SHEET_FILE


def _cell(done: Sparse, entry: dict[str, Any]) -> Cell:
    if "ssim" not in entry:
        return Cell(done.picture(entry), str(entry["prompt"]))
    decibels = "equal" if entry["psnr"] is None else f"{entry['psnr']:.1f} dB"
    return Cell(done.picture(entry), decibels)


def save_plot(done: Sparse) -> Path | None:
    """Draw decibels of every picture and speeds of every way; ``None`` without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [way["name"] for way in done.record["ways"]][1:]
    if not names:
        return None
    figure: Any = Figure(figsize=(11, 1.2 + LINE_INCHES * len(names)), layout="constrained")
    speed = done.record["speed"]
    axes = figure.subplots(1, 1 if speed is None else 2, sharey=True, squeeze=False)[0]
    left = axes[0]
    for place, name in enumerate(names):
        mine = [e for e in done.entries if e["condition"] == name and e.get("psnr") is not None]
        left.plot([e["psnr"] for e in mine], [place] * len(mine), "o", color="tab:blue", alpha=0.4)
        line = [entry for entry in done.record["fidelity"] if entry["condition"] == name]
        if line and line[0]["psnr"] is not None:
            left.plot([line[0]["psnr"]], [place], "|", color="black", markersize=14)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("PSNR against the dense picture, dB; | median")
    if speed is not None:
        _draw_speeds(axes[1], speed, names)
    with new_file(done.folder / PLOT_FILE) as file:
        FigureCanvasAgg(figure).print_png(file)
    return done.folder / PLOT_FILE


def _draw_speeds(axes: Any, speed: dict[str, Any], names: list[str]) -> None:
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xlabel("times as fast as dense, quartiles")
    lines = {line["condition"]: line for line in speed["lines"]}
    marks = (("acting", "o", "step"), ("attention", "s", "attention alone"))
    for kind, mark, label in marks:
        known = [(i, lines[n][kind]) for i, n in enumerate(names) if lines.get(n, {}).get(kind)]
        middles = [value["median"] for _, value in known]
        spread = [
            [value["median"] - value["low"] for _, value in known],
            [value["high"] - value["median"] for _, value in known],
        ]
        places = [place for place, _ in known]
        axes.errorbar(middles, places, xerr=spread, fmt=mark, label=label, capsize=2)
    axes.set_xscale("log")
    axes.legend()
