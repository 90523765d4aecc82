"""Pictures that carry their own recipe: whole files, PNG text metadata, and reading it back."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import metadata as package_metadata
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from attnctl.errors import RecipeError
from attnctl.files import new_file

CHUNK = "attnctl"
"""Name of the PNG text chunk that holds the whole record as JSON."""

INFOTEXT_CHUNK = "parameters"
"""Name of the PNG text chunk in the form that other tools read."""

FORMAT = 1
"""Version of the record; a reader refuses newer ones."""

MAX_PIXELS = 64_000_000
"""Largest picture that is opened, in pixels: a guard against decompression bombs."""

_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"), "***"),
    (re.compile(r"(?i)\b(token|api_key|password|secret)=[^\s&]+"), r"\1=***"),
)
_SCHEDULER_KEYS = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "clip_sample",
    "set_alpha_to_one",
    "algorithm_type",
    "solver_order",
    "use_karras_sigmas",
    "final_sigmas_type",
    "shift",
    "use_dynamic_shifting",
    "rescale_betas_zero_snr",
)


def versions() -> dict[str, str]:
    """Versions that decide about a picture's exact pixels."""
    found: dict[str, str] = {}
    for package in ("attnctl", "torch", "diffusers", "transformers"):
        try:
            found[package] = package_metadata.version(package)
        except package_metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def scheduler_record(scheduler: Any) -> dict[str, Any]:
    """Class and essential settings of a diffusers scheduler, as plain values."""
    config = dict(getattr(scheduler, "config", {}))
    kept = {key: config[key] for key in _SCHEDULER_KEYS if config.get(key) is not None}
    return {"class": type(scheduler).__name__, "config": kept}


def run_record(
    pipe: Any, techniques: Sequence[Any], kernel: str | None = None, scheduler: Any = None
) -> dict[str, Any]:
    """What a run and all that it makes have in common, as plain values for their metadata.

    Args:
        pipe: The pipeline.
        techniques: That were attached.
        kernel: What was asked for, if that could be.
        scheduler: If it was not the pipeline's own.
    """
    run = {
        "device": str(getattr(pipe, "_execution_device", pipe.device)),
        "dtype": str(pipe.dtype).removeprefix("torch."),
    }
    return {
        "pipeline": type(pipe).__name__,
        "scheduler": scheduler_record(scheduler or pipe.scheduler),
        "techniques": [{"name": t.name, "settings": t.settings()} for t in techniques],
        "run": run if kernel is None else {**run, "kernel": kernel},
    }


def save_png(
    image: Image.Image,
    path: str | os.PathLike[str],
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Save ``image`` as a PNG that carries ``record``; the file appears only when it is whole.

    Args:
        image: The picture.
        path: Where to; missing folders are made.
        record: Plain values: recipe, model, scheduler, techniques, ... Secrets are blotted out.

    Raises:
        OSError: the file cannot be written; nothing is left under ``path``.
    """
    chunks = PngImagePlugin.PngInfo()
    if record is not None:
        clean = without_secrets({"format": FORMAT, **record, "versions": versions()})
        chunks.add_itxt(CHUNK, json.dumps(clean, ensure_ascii=False, allow_nan=False))
        chunks.add_itxt(INFOTEXT_CHUNK, infotext(clean))
    with new_file(path) as file:
        image.save(file, format="PNG", pnginfo=chunks)
    return Path(path)


def infotext(record: Mapping[str, Any]) -> str:
    """The three lines that other image tools know: prompt, negative prompt, settings."""
    recipe: Mapping[str, Any] = record.get("recipe", {})
    lines = [str(recipe.get("prompt", ""))]
    if recipe.get("negative"):
        lines.append(f"Negative prompt: {recipe['negative']}")
    scheduler: Mapping[str, Any] = record.get("scheduler", {})
    names = [str(entry.get("name")) for entry in record.get("techniques", [])]
    settings = {
        "Steps": recipe.get("steps"),
        "Sampler": str(scheduler.get("class", "")).removesuffix("Scheduler"),
        "CFG scale": recipe.get("guidance"),
        "Seed": recipe.get("seed"),
        "Size": recipe.get("size"),
        "Model": recipe.get("model"),
        "attnctl": " + ".join(names),
    }
    shown = (f"{key}: {_one_value(value)}" for key, value in settings.items() if value)
    lines.append(", ".join(shown))
    return "\n".join(lines).replace("\0", "")


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Open and decode a picture.

    Raises:
        RecipeError: the file is missing, no picture, damaged, or larger than ``MAX_PIXELS``.
    """
    name = os.fspath(path)
    if not Path(path).is_file():
        raise RecipeError(f"there is no picture file {name!r}")
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        raise RecipeError(f"{name!r} is too large: at most {MAX_PIXELS:,} pixels") from None
    except (OSError, ValueError, SyntaxError):
        raise RecipeError(f"{name!r} is no picture that can be read; give a PNG file") from None
    if image.width * image.height > MAX_PIXELS:
        raise RecipeError(
            f"{name!r} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read"
        )
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise RecipeError(f"{name!r} is damaged: {error}; make or copy it again") from None
    return image


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read back what ``save_png`` wrote into a picture.

    Raises:
        RecipeError: no picture, not a PNG, no record in it, a broken or a newer record.
    """
    name = os.fspath(path)
    image = open_picture(path)
    if image.format != "PNG":
        raise RecipeError(
            f"{name!r} is a {image.format} file; only PNG files that attnctl wrote carry a recipe"
        )
    text = getattr(image, "text", {}).get(CHUNK)
    if text is None:
        raise RecipeError(
            f"{name!r} carries no attnctl recipe; give a picture that `attnctl generate` wrote"
            " and that no other program has saved since"
        )
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise RecipeError(
            f"the recipe inside {name!r} is broken JSON; the file was altered"
        ) from None
    if not isinstance(record, dict) or not isinstance(record.get("recipe"), dict):
        raise RecipeError(f"the record inside {name!r} holds no recipe; the file was altered")
    if record.get("format") != FORMAT:
        raise RecipeError(
            f"{name!r} has a record of format {record.get('format')!r}, attnctl reads {FORMAT};"
            " use the version of attnctl that made it"
        )
    return record


def _one_value(value: object) -> str:
    """Write a value so that commas and colons in it do not look like the next setting."""
    text = str(value).replace("\n", " ")
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"]', text) else text


def without_secrets(value: Any) -> Any:
    """Copy plain values with tokens and passwords blotted out."""
    if isinstance(value, str):
        for pattern, replacement in _SECRETS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value
