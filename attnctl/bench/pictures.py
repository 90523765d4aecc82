"""Pictures of a benchmark on disk: saved with what a program sees in them, and found again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from attnctl.bench.conditions import Condition
from attnctl.bench.journal import Journal
from attnctl.errors import AttnctlError
from attnctl.imaging import open_picture, save_png
from attnctl.pipelines.text_to_image import Picture  # pyright: ignore[reportMissingImports]
from attnctl.shapes.captions import Prompt
from attnctl.shapes.verifier import verify


def finished(
    journal: Journal, condition: Condition, batch: Sequence[tuple[str, Prompt]], folder: Path
) -> list[dict[str, Any]] | None:
    """Entries of a whole batch whose pictures are all there, else ``None``."""
    found: list[dict[str, Any]] = []
    for name, _ in batch:
        entry = journal.get(condition.name, name)
        if entry is None or not is_whole(folder / str(entry["file"]), str(entry["pixels"])):
            return None
        found.append(entry)
    return found


def is_whole(path: Path, pixels: str) -> bool:
    """Whether a picture is there and has these pixels."""
    try:
        return pixels_hash(open_picture(path)) == pixels
    except AttnctlError:
        return False


def save_entry(
    name: str, prompt: Prompt, condition: Condition, picture: Picture, folder: Path
) -> dict[str, Any]:
    """Save one picture and write down what the program sees in it."""
    file = f"pictures/{name}-{condition.slug}.png"
    save_png(picture.image, folder / file, picture.record)
    verdict = verify(picture.image, prompt.text)
    report = picture.report or {"losses": [], "warnings": []}
    return {
        "id": name,
        "condition": condition.name,
        "prompt": prompt.text,
        "seed": prompt.seed,
        "wanted": [str(kind) for kind in verdict.wanted],
        "found": [str(seen) for seen in verdict.found],
        "missing": [str(kind) for kind in verdict.missing],
        "extra": [str(seen) for seen in verdict.extra],
        "all_right": verdict.all_right,
        "exact": verdict.exact,
        "neglect": verdict.is_neglect,
        "absence": verdict.is_absence,
        "verdict": verdict.label(),
        "gradients": sum(int(entry["evaluations"]) for entry in report["losses"]),
        "warnings": list(report["warnings"]),
        "file": file,
        "pixels": pixels_hash(picture.image),
        "seconds": picture.seconds,
    }


def pixels_hash(image: Image.Image) -> str:
    """Hash of a picture's size and pixels, whatever file it lies in."""
    plain = image.convert("RGB")
    return hashlib.sha256(f"{plain.size}".encode() + plain.tobytes()).hexdigest()
