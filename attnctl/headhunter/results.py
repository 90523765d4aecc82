"""Files of a finished search: the head set, every score, a heat map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.files import new_file, write_text
from attnctl.headhunter.pool import Candidate
from attnctl.heads import HeadSet

HEADS_FILE, SCORES_FILE, PLOT_FILE = "heads.yaml", "scores.json", "heat-map.png"

Rounds = Sequence[Mapping[Candidate, Sequence[float]]]


def save_results(
    folder: Path, run: Mapping[str, Any], heads: HeadSet, rounds: Rounds, *, plot: bool
) -> dict[str, Path]:
    """Write everything that a search has found; return the files by name."""
    listed = [
        [
            {"layer": c.layer, "path": c.path, "head": c.head, "mean": _mean(all_), "scores": all_}
            for c, all_ in scores.items()
        ]
        for scores in rounds
    ]
    record = {"format": 1, **run, "heads": heads.to_dict()["heads"], "rounds": listed}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files = {
        "heads": heads.save(folder / HEADS_FILE),
        "scores": write_text(folder / SCORES_FILE, text),
    }
    if plot:
        files["plot"] = save_heat_map(folder / PLOT_FILE, heads, rounds)
    return files


def save_heat_map(path: Path, heads: HeadSet, rounds: Rounds) -> Path:
    """Draw mean scores, one panel a round: layers down, heads across, chosen heads numbered."""
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    layers = sorted({candidate.layer for scores in rounds for candidate in scores})
    width = 1 + max(candidate.head for scores in rounds for candidate in scores)
    size = (1.4 + len(rounds) * (1.6 + 0.26 * width), max(2.6, 1.5 + 0.24 * len(layers)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(rounds), squeeze=False)[0]
    means = [_mean(all_) for scores in rounds for all_ in scores.values()]
    colours = Normalize(min(means), max(means))
    image: Any = None
    for number, (panel, scores) in enumerate(zip(panels, rounds, strict=True), 1):
        cells = [[math.nan] * width for _ in layers]
        for candidate, all_ in scores.items():
            cells[layers.index(candidate.layer)][candidate.head] = _mean(all_)
        image = panel.imshow(cells, norm=colours, aspect="auto")
        panel.set(title=f"round {number}", xlabel="head", ylabel="layer")
        panel.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=7)
        panel.set_xticks(range(width), [str(head) for head in range(width)], fontsize=7)
        panel.set_facecolor("0.85")
        first = (number - 1) * len(heads) // len(rounds)
        _number_chosen(panel, heads, range(first, number * len(heads) // len(rounds)), layers)
    figure.colorbar(image, ax=list(panels), label=f"mean score ({heads.objective})")
    with new_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path


def _number_chosen(
    panel: Any, heads: HeadSet, places: Sequence[int], layers: Sequence[int]
) -> None:
    """Write into the cells of the heads at ``places`` of the set which place they have, from 1."""
    for place in places:
        one = heads.heads[place]
        if one.layer is not None:
            at = (one.head, layers.index(one.layer))
            panel.annotate(
                str(place + 1), at, ha="center", va="center", fontsize=6, fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "black", "lw": 0.6},
            )  # fmt: skip


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores)
