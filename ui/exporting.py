"""The state of the page as a recipe file, a Python snippet and a command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from attnctl import registry
from attnctl.cli.technique_text import read_technique
from attnctl.errors import RecipeError
from attnctl.pipelines.video_settings import (  # pyright: ignore[reportMissingImports]
    VideoEditSettings,
)
from attnctl.recipes import Recipe, TechniqueEntry
from attnctl.video import FrameRange
from attnctl.yaml_files import write_yaml

from .controls import flow_text

_OPTIONS = ("model", "negative", "seed", "count", "steps", "guidance", "size", "scheduler")
_CLIP_OPTIONS = ("model", "negative", "steps", "guidance", "size")
_WORDS_OPTIONS = ("model", "negative", "seed", "steps", "guidance", "size", "frames")


@dataclass(frozen=True, slots=True)
class Exported:
    """Three ways to make the same pictures elsewhere."""

    recipe: str
    python: str
    command: str


def export(recipe: Recipe, *, compare: bool = False) -> Exported:
    """Write a recipe, of one prompt and with a seed, in three ways."""
    text = write_yaml(recipe.to_dict())
    return Exported(text, python_of(recipe), command_of(recipe, compare=compare))


def command_of(recipe: Recipe, *, compare: bool = False) -> str:
    """Write the command line of ``attnctl generate``."""
    options = _options(recipe, _OPTIONS)
    if options is None:
        return "attnctl generate --recipe recipe.yaml" + (" --compare" if compare else "")
    more = ["--compare"] if compare and recipe.techniques else []
    return shlex.join(["attnctl", "generate", str(recipe.prompt), *options, *more])


def clip_command_of(
    file: str, recipe: Recipe, settings: VideoEditSettings, chosen: FrameRange, *, sound: bool
) -> str:
    """Write the command line of ``attnctl video-edit``; empty if ``-t`` cannot write a value."""
    options = _options(recipe, _CLIP_OPTIONS)
    if options is None:
        return ""
    words = ["attnctl", "video-edit", file, "--source", settings.source]
    words += ["--target", settings.target, *options]
    if chosen.start or chosen.stop is not None:
        words += ["--frames", f"{chosen.start}-{'' if chosen.stop is None else chosen.stop}"]
    for name in ("chunk", "flow", "inject"):
        words += [f"--{name}", str(getattr(settings, name))]
    words += ["--stride", str(chosen.stride)] if chosen.stride > 1 else []
    return shlex.join([*words, *([] if sound else ["--no-audio"])])


def words_command_of(recipe: Recipe) -> str:
    """Write the command line of ``attnctl video``; empty if ``-t`` cannot write a value."""
    options = _options(recipe, _WORDS_OPTIONS)
    return "" if options is None else shlex.join(["attnctl", "video", str(recipe.prompt), *options])


def _options(recipe: Recipe, names: tuple[str, ...]) -> list[str] | None:
    """Write fields and techniques as options; ``None`` if ``-t`` cannot write a value."""
    words: list[str] = []
    for name in names:
        value = getattr(recipe, name)
        if value is not None and (name != "count" or value != 1):
            words += [f"--{name}", str(value)]
    for entry in recipe.techniques:
        text = _technique_option(entry)
        if text is None:
            return None
        words += ["-t", text]
    return words


def python_of(recipe: Recipe) -> str:
    """Write a Python program that saves the same pictures."""
    lines = ["import attnctl", "import diffusers", "import torch", ""]
    lines.append(f"pipe = attnctl.load_pipeline({recipe.model!r})")
    if recipe.scheduler:
        kind = f"diffusers.{recipe.scheduler}"
        lines.append(f"pipe.scheduler = {kind}.from_config(pipe.scheduler.config)")
    else:
        lines.remove("import diffusers")
    lines += ["techniques = [", *(f"    {_constructor(e)}," for e in recipe.techniques), "]"]
    first = recipe.seed or 0
    lines += [
        "with attnctl.attach(pipe, techniques) as session:",
        f"    for seed in range({first}, {first + recipe.count}):",
        "        image = pipe(",
        *(f"            {name}={value!r}," for name, value in _arguments(recipe).items()),
        '            generator=torch.Generator("cpu").manual_seed(seed),',
        "        ).images[0]",
        '        image.save(f"{seed}.png")',
        "print(session.report())",
    ]
    return "\n".join(lines) + "\n"


def _arguments(recipe: Recipe) -> dict[str, Any]:
    width, height = recipe.size_px or (None, None)
    values = {
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative,
        "num_inference_steps": recipe.steps,
        "guidance_scale": recipe.guidance,
        "width": width,
        "height": height,
    }
    return {name: value for name, value in values.items() if value is not None}


def _constructor(entry: TechniqueEntry) -> str:
    cls = registry.find_technique(entry.name)
    values = ", ".join(f"{name}={value!r}" for name, value in entry.parameters.items())
    if cls.__module__.startswith("attnctl."):
        return f"attnctl.{cls.__name__}({values})"
    return f"attnctl.registry.build({entry.name!r}, {entry.parameters!r})"


def _technique_option(entry: TechniqueEntry) -> str | None:
    """Write ``NAME:key=value``; ``None`` if that would not be read back as it is."""
    values = ",".join(f"{name}={_flow(value)}" for name, value in entry.parameters.items())
    text = f"{entry.name}:{values}" if values else entry.name
    try:
        is_same = read_technique(text) == {entry.name: entry.parameters}
    except RecipeError:
        return None
    return text if is_same else None


def _flow(value: Any) -> str:
    """Write a value on one line, as YAML would in a list."""
    if isinstance(value, str):
        return value if value and value.replace("-", "").isalnum() else f'"{value}"'
    return flow_text(value)
