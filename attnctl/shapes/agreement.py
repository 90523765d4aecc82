"""How well the verifier agrees with a person's labels of generated pictures.

``python -m attnctl.shapes.agreement`` prints JSON. The labels were made by one labeller, who saw
pictures and captions but no verdicts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnctl.bench.statistics import Paired, wilson_interval
from attnctl.shapes.captions import ObjectKind, parse_caption
from attnctl.shapes.verifier import Verdict, VerifierSettings, verify
from attnctl.sheets import Cell, draw_grid, enlarge

CELL_PX = 64
COLUMNS = 20
FOLDER = Path("benchmarks/verifier")


@dataclass(frozen=True)
class Label:
    """What a person sees in one picture.

    Attributes:
        model: Bundled model that drew the picture.
        prompt: Its caption.
        seed: Seed of its start noise.
        there: Whether each named object is clearly there, in the caption's order.
        extra: Number of other visible objects; duplicates and blobs count.
        debatable: Whether another person might well say something else.
    """

    model: str
    prompt: str
    seed: int
    there: tuple[bool, ...]
    extra: int
    debatable: bool

    def __post_init__(self) -> None:
        named = len(parse_caption(self.prompt).objects)
        if len(self.there) != named or self.extra < 0:
            raise ValueError(
                f'the label of "{self.prompt}" needs {named} answers and extra >= 0; it has '
                f"{len(self.there)} answers and extra={self.extra}"
            )

    @property
    def all_right(self) -> bool:
        """Whether every named object is there."""
        return all(self.there)

    @property
    def exact(self) -> bool:
        """Whether every named object is there and nothing else."""
        return self.all_right and self.extra == 0

    def __str__(self) -> str:
        kinds = parse_caption(self.prompt).objects
        missing = [kind for kind, there in zip(kinds, self.there, strict=True) if not there]
        return _say(missing, self.extra) + (" (debatable)" if self.debatable else "")


@dataclass(frozen=True)
class Compared:
    """One picture with its label and its verdict.

    Attributes:
        number: Place in the grid, row by row, from 0.
        picture: ``(64, 64, 3)``, uint8.
        label: What the person says.
        verdict: What the verifier says.
    """

    number: int
    picture: NDArray[np.uint8]
    label: Label
    verdict: Verdict

    @property
    def seen_there(self) -> tuple[bool, ...]:
        """Whether the verifier sees each named object, in the caption's order."""
        # The captions of prompt lists name no kind twice.
        return tuple(kind not in self.verdict.missing for kind in self.verdict.wanted)

    @property
    def agrees(self) -> bool:
        """Whether both say the same of each object, and of whether there is anything else."""
        return self.label.there == self.seen_there and self.label.exact == self.verdict.exact


def _say(missing: Sequence[ObjectKind], extra: int) -> str:
    parts = [f"no {kind}" for kind in missing] + ([f"{extra} extra"] if extra else [])
    return ", ".join(parts) or "all right"


def read_labels(path: Path) -> list[Label]:
    """Read a file of labels: JSON, one record a picture, in the order of the grid.

    Raises:
        ValueError: A record does not fit its caption.
    """
    return [
        Label(**(record | {"there": tuple(record["there"])}))
        for record in json.loads(path.read_text(encoding="utf-8"))
    ]


def read_pictures(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """Cut a grid of 20 columns into pictures.

    Args:
        path: A PNG of cells of 64 x 64 pixels.
        count: Number of pictures.

    Returns:
        Pictures ``(64, 64, 3)``, uint8, row by row.

    Raises:
        ValueError: The grid has another size than so many pictures need.
    """
    grid = np.asarray(Image.open(path).convert("RGB"))
    rows = -(-count // COLUMNS)
    if grid.shape[:2] != (rows * CELL_PX, COLUMNS * CELL_PX):
        raise ValueError(
            f"{path} is {grid.shape[1]} x {grid.shape[0]} pixels; {count} pictures need "
            f"{COLUMNS * CELL_PX} x {rows * CELL_PX}"
        )
    cells = grid.reshape(rows, CELL_PX, COLUMNS, CELL_PX, 3).swapaxes(1, 2)
    return list(cells.reshape(-1, CELL_PX, CELL_PX, 3)[:count])


def compare(folder: Path, settings: VerifierSettings | None = None) -> list[Compared]:
    """Verify each labelled picture of a folder that holds ``labels.json`` and ``pictures.png``."""
    labels = read_labels(folder / "labels.json")
    pictures = read_pictures(folder / "pictures.png", len(labels))
    return [
        Compared(number, picture, label, verify(picture, label.prompt, settings))
        for number, (label, picture) in enumerate(zip(labels, pictures, strict=True))
    ]


def kappa(pairs: Paired) -> float:
    """Cohen's kappa: agreement beyond chance, 1 at most; 1 if both always say the same.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    first = (pairs.both + pairs.first) / pairs.total
    second = (pairs.both + pairs.second) / pairs.total
    chance = first * second + (1 - first) * (1 - second)
    observed = (pairs.both + pairs.neither) / pairs.total
    return 1.0 if chance == 1.0 else (observed - chance) / (1 - chance)


def count_agreement(pairs: Paired) -> dict[str, Any]:
    """Describe how often two judges agree; the label is the first, the verifier the second."""
    agreed = pairs.both + pairs.neither
    low, high = wilson_interval(agreed, pairs.total)
    return {
        "cases": pairs.total,
        "agreed": agreed,
        "percent": round(100 * agreed / pairs.total, 1),
        "interval_percent": [round(100 * low, 1), round(100 * high, 1)],
        "kappa": round(kappa(pairs), 3),
        "yes_by_label": pairs.both + pairs.first,
        "yes_by_verifier": pairs.both + pairs.second,
        "false_accepts": pairs.second,
        "false_refusals": pairs.first,
    }


def summarise(compared: Sequence[Compared]) -> dict[str, Any]:
    """Agreement on objects, on "all right" and on "exact"; at least one picture."""
    there = [answer for one in compared for answer in one.label.there]
    seen = [answer for one in compared for answer in one.seen_there]
    right = Paired.count(
        [one.label.all_right for one in compared], [one.verdict.all_right for one in compared]
    )
    exact = Paired.count(
        [one.label.exact for one in compared], [one.verdict.exact for one in compared]
    )
    return {
        "pictures": len(compared),
        "objects_there": count_agreement(Paired.count(there, seen)),
        "all_right": count_agreement(right),
        "exact": count_agreement(exact),
    }


def describe(compared: Sequence[Compared], settings: VerifierSettings) -> dict[str, Any]:
    """Everything that is printed: agreement overall and in parts, and each disagreement."""
    parts = {"all": list(compared)}
    parts |= {
        model: [one for one in compared if one.label.model == model]
        for model in dict.fromkeys(one.label.model for one in compared)
    }
    agreement: dict[str, Any] = {}
    for name, part in parts.items():
        agreement[name] = summarise(part)
        clear = [one for one in part if not one.label.debatable]
        if clear:
            agreement[f"{name}, not debatable"] = summarise(clear)
    thresholds = asdict(settings)
    del thresholds["vocabulary"]
    return {
        "thresholds": thresholds,
        "agreement": agreement,
        "disagreements": [_describe_one(one) for one in compared if not one.agrees],
    }


def _describe_one(one: Compared) -> dict[str, Any]:
    return {
        "number": one.number,
        "model": one.label.model,
        "prompt": one.label.prompt,
        "label": str(one.label),
        "verifier": one.verdict.label(),
        "sees": [f"{seen} {seen.overlap:.2f}" for seen in one.verdict.found],
    }


def save_disagreements(compared: Sequence[Compared], path: Path) -> None:
    """Save the pictures on which label and verifier differ as one PNG, both answers below each."""
    cells: list[Cell] = []
    for one in compared:
        if not one.agrees:
            seen = _say(one.verdict.missing, len(one.verdict.extra))
            picture = enlarge(Image.fromarray(one.picture), 5 * CELL_PX)
            cells.append(Cell(picture, f"{one.number}: {one.label} | verifier: {seen}"))
    if cells:
        draw_grid(cells, title="number: what the label says | what the verifier says").save(path)


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m attnctl.shapes.agreement", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="with labels.json and pictures.png"
    )
    parser.add_argument("--sheet", type=Path, help="save the disagreements as one PNG")
    usual = VerifierSettings()
    for name in ("chroma", "area", "overlap", "purity"):
        parser.add_argument(f"--{name}", type=float, default=getattr(usual, name))
    chosen = parser.parse_args(words)
    settings = VerifierSettings(
        chroma=chosen.chroma, area=chosen.area, overlap=chosen.overlap, purity=chosen.purity
    )
    compared = compare(chosen.folder, settings)
    if chosen.sheet:
        save_disagreements(compared, chosen.sheet)
    sys.stdout.write(json.dumps(describe(compared, settings), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
