"""Edits of rendered clips whose true motion is known: ways to keep frames together, compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.bench.journal import Journal
from attnctl.bench.machine import fingerprint, machine_record
from attnctl.bench.pictures import is_whole, pixels_hash
from attnctl.bench.video.cases import VideoCase, VideoCondition, make_cases
from attnctl.bench.video.measures import score_clip, warping_error
from attnctl.bench.video.ways import make_frames, through_autoencoder
from attnctl.errors import SettingError
from attnctl.files import write_json
from attnctl.imaging import open_picture, save_png

FORMAT = 1
NUMBERS = ("warping_error", "floor", "flicker", "success", "exact", "identity", "preservation")


@dataclass(frozen=True, slots=True)
class VideoBenchSettings:
    """What is measured.

    Attributes:
        model: Bundled name or folder.
        count: Clips a condition.
        frames: Frames of a clip.
        split: Name of the list of clips.
        steps: Steps of the inversion and of the edit.
        guidance: Guidance scale of the edit.
        edit: What is exchanged: ``colour``, ``shape`` or ``none``.
    """

    model: str = "shapes"
    count: int = 20
    frames: int = 16
    split: str = "validation"
    steps: int = 25
    guidance: float = 5.0
    edit: str = "colour"

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("frames", 2), ("steps", 1)):
            if not least <= getattr(self, name) <= 10_000:
                raise SettingError(
                    f"--{name} {getattr(self, name)} must lie between {least} and 10000"
                )

    def to_plain(self) -> dict[str, Any]:
        """Plain values; the edit only where it is not the usual one."""
        plain = asdict(self)
        return plain if self.edit != "colour" else {k: v for k, v in plain.items() if k != "edit"}


@dataclass(frozen=True, slots=True)
class VideoBench:
    """A finished measurement.

    Attributes:
        record: Plain values: settings, versions, means, comparisons, every score.
        entries: One record a clip and condition.
        cases: The clips.
        folder: Where everything lies.
    """

    record: dict[str, Any]
    entries: list[dict[str, Any]]
    cases: list[VideoCase]
    folder: Path

    def frames_of(self, condition: str, case: str) -> Tensor:
        """The edited frames ``(F, 3, H, W)`` in [0, 1]."""
        entry = next(e for e in self.entries if e["condition"] == condition and e["id"] == case)
        return split_strip(open_picture(self.folder / str(entry["file"])))

    def save(self, name: str) -> Path:
        """Write the record into the folder of the measurement."""
        return write_json(self.folder / f"{name}.json", self.record)


def measure(
    pipe: Any,
    settings: VideoBenchSettings,
    conditions: Sequence[VideoCondition],
    folder: Path,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> VideoBench:
    """Edit, score and compare; clip by clip, every condition has its turn.

    Args:
        pipe: A pipeline that draws shapes.
        settings: What is measured.
        conditions: What is compared; the first one is what the others are compared with.
        folder: For pictures, journal and result.
        resume: Go on with a run that was stopped.
        say: Told about every finished clip.

    Raises:
        SettingError: the folder holds another run, or two conditions share a name.
    """
    if len({condition.name for condition in conditions}) < len(conditions):
        raise SettingError("two conditions have one name; give each its own")
    run = _record(pipe, settings, conditions)
    journal = Journal(folder, run)
    journal.open(resume=resume)
    cases = _cases_of(settings)
    entries: list[dict[str, Any]] = []
    for case in cases:
        for condition in conditions:
            entry = _known(journal, condition, case, folder)
            if entry is None:
                journal.forget(condition.name, [case.name])
                entry = _make(pipe, settings, condition, case, folder)
                journal.add([entry])
                say(_line(entry, len(cases)))
            entries.append(entry)
    record = {"format": FORMAT, "benchmark": "video", **run, **summary(entries, conditions)}
    record["scores"] = [{k: v for k, v in e.items() if k != "seconds"} for e in entries]
    return VideoBench(record, entries, cases, folder)


def _cases_of(settings: VideoBenchSettings) -> list[VideoCase]:
    return make_cases(settings.split, settings.count, settings.frames, settings.edit)


def summary(
    entries: Sequence[Mapping[str, Any]], conditions: Sequence[VideoCondition]
) -> dict[str, Any]:
    """Means of every condition, and how its warping error compares with that of the first one."""
    by_name = {c.name: [e for e in entries if e["condition"] == c.name] for c in conditions}
    first = by_name[conditions[0].name]
    lines: list[dict[str, Any]] = []
    for name, mine in by_name.items():
        line: dict[str, Any] = {"condition": name, "clips": len(mine)}
        line |= {key: float(np.mean([e[key] for e in mine])) for key in NUMBERS}
        line["seconds"] = float(np.mean([e["seconds"] for e in mine]))
        pairs = list(zip(mine, first, strict=True))
        done = [(a, b) for a, b in pairs if a["success"] == b["success"] == 1.0]
        line["ratio_of_warping_error"], line["ratio_interval"] = _ratio(pairs)
        line["ratio_of_excess"], line["excess_interval"] = _ratio(pairs, over="floor")
        line["clips_both_right"] = len(done)
        line["ratio_both_right"], line["both_right_interval"] = _ratio(done)
        lines.append(line)
    return {"results": lines}


def _ratio(
    pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], over: str | None = None
) -> tuple[float | None, list[float] | None]:
    """Ratio of mean warping errors, with its 95 percent interval by resampling clips in pairs.

    Args:
        pairs: One clip under this and under the first condition.
        over: Key of what is subtracted from each error.
    """
    if not pairs:
        return None, None
    errors = np.array(
        [[e["warping_error"] - (e[over] if over else 0.0) for e in pair] for pair in pairs]
    )
    drawn = np.random.default_rng(0).integers(0, len(errors), (4000, len(errors)))
    means = np.concatenate([errors.mean(0)[None], errors[drawn].mean(1)])
    ratios = means[:, 0] / np.maximum(means[:, 1], 1e-9)
    return float(ratios[0]), [float(value) for value in np.quantile(ratios[1:], [0.025, 0.975])]


def strip(frames: Tensor) -> Image.Image:
    """Frames ``(F, 3, H, W)`` side by side in one picture."""
    values = (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(2, 0, 3, 1)
    return Image.fromarray(values.flatten(1, 2).numpy())


def split_strip(picture: Image.Image) -> Tensor:
    """The inverse of :func:`strip`, for square frames."""
    values = torch.from_numpy(np.array(picture.convert("RGB")))
    side = values.shape[0]
    return values.unflatten(1, (-1, side)).permute(1, 3, 0, 2).float() / 255


def _make(
    pipe: Any,
    settings: VideoBenchSettings,
    condition: VideoCondition,
    case: VideoCase,
    folder: Path,
) -> dict[str, Any]:
    started = time.perf_counter()
    frames = make_frames(pipe, condition, case, settings.steps, settings.guidance)
    slug = condition.name.lower().replace(" ", "-")
    file = f"pictures/{case.name}-{slug}.png"
    picture = strip(frames)
    save_png(picture, folder / file)
    return {
        "id": case.name,
        "condition": condition.name,
        "source": case.source,
        "target": case.target,
        **score_clip(frames, case.clip, case.answer, case.slot).to_dict(),
        "floor": warping_error(through_autoencoder(pipe, case.answer.frames), case.answer),
        "file": file,
        "pixels": pixels_hash(picture),
        "seconds": time.perf_counter() - started,
    }


def _known(
    journal: Journal, condition: VideoCondition, case: VideoCase, folder: Path
) -> dict[str, Any] | None:
    entry = journal.get(condition.name, case.name)
    if entry is None or not is_whole(folder / str(entry["file"]), str(entry["pixels"])):
        return None
    return entry


def _record(
    pipe: Any, settings: VideoBenchSettings, conditions: Sequence[VideoCondition]
) -> dict[str, Any]:
    return {
        "settings": settings.to_plain(),
        "conditions": [condition.to_plain() for condition in conditions],
        "weights": fingerprint(pipe),
        "machine": machine_record(str(pipe.device)),
    }


def _line(entry: Mapping[str, Any], count: int) -> str:
    return (
        f"{int(entry['id']) + 1}/{count} {entry['condition']}: warping error"
        f" {entry['warping_error']:.4f}, success {100 * entry['success']:.0f}%"
        f" ({entry['seconds']:.0f} s) {entry['source']} -> {entry['target']}"
    )
