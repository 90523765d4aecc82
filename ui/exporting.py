"""The state of the page as a recipe file, a Python snippet and a command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from attnctl import registry
from attnctl.cli.technique_text import read_technique
from attnctl.errors import RecipeError
from attnctl.recipes import Recipe, TechniqueEntry
from attnctl.yaml_files import write_yaml

from .controls import flow_text

_OPTIONS = ("model", "negative", "seed", "count", "steps", "guidance", "size", "scheduler")


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
    words = ["attnctl", "generate", str(recipe.prompt)]
    for name in _OPTIONS:
        value = getattr(recipe, name)
        if value is not None and (name != "count" or value != 1):
            words += [f"--{name}", str(value)]
    for entry in recipe.techniques:
        text = _technique_option(entry)
        if text is None:  # a value that -t cannot write
            return "attnctl generate --recipe recipe.yaml" + (" --compare" if compare else "")
        words += ["-t", text]
    return shlex.join([*words, *(["--compare"] if compare and recipe.techniques else [])])


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
