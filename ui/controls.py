"""Controls of a technique, made from the record of its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import yaml

from attnctl import registry
from attnctl.errors import AttnctlError, SettingError
from attnctl.registry import ParameterRecord, TechniqueRecord
from attnctl.yaml_files import parse_yaml

HIDDEN = (
    "heat-maps",  # the page records maps by itself
    "dit-flow",  # no page gives these what they need of other pictures
    "motion-flow",
    "prime-composer",
    "ditctrl",  # no page draws a clip of several prompts
)
_WORDS = ("subjects", "words")
_NOT_ONE_PICTURE = {"source", "source_latents", "trajectory", "frames", "stages", "scales"}
_ONLY_CLIPS = {"frames", "stages", "scales", "trajectory"}
_BETWEEN_ITEMS = {"items", "scales", "trajectory"}
_NO_PLAIN_VALUES = ("Tensor", "FeatureStore", "ClipFlow")
_FILE = re.compile(r"\bfiles?\b|a set that")
_BETWEEN = re.compile(r"in \[(-?[\d.]+), (-?[\d.]+?)[\])]")
_FROM_TO = re.compile(r"[Ff]rom (\d[\d.]*)(?: \([^)]*\))? to (\d[\d.]*)")
_FROM = re.compile(r"(?:[Ff]rom|at least) (\d+)\b")
_QUOTED = re.compile(r"``([\w-]+)``|\"([\w-]+)\"")


@dataclass(frozen=True, slots=True)
class Control:
    """How one parameter is asked for.

    Attributes:
        name: The parameter.
        kind: ``switch``, ``number``, ``choice``, ``text``, ``words``, ``steps``, ``where`` or
            ``value`` (anything else, written as in YAML).
        default: What it is if nothing is said, as the control shows it.
        help: What it means, with its unit.
        low: Smallest number; ``None`` if there is no bound.
        high: Largest number.
        whole: Whether only whole numbers make sense.
        choices: What can be chosen.
        reads_files: Whether the technique takes a text as the name of a file.
    """

    name: str
    kind: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    whole: bool = False
    choices: tuple[str, ...] = ()
    reads_files: bool = False


@cache
def _records() -> dict[str, TechniqueRecord]:
    return {record.name: record for record in registry.list_techniques()}


@cache
def controls_of(technique: str) -> tuple[Control, ...]:
    """Make the controls of a technique, those that matter most first.

    Raises:
        UnknownTechniqueError: there is no such technique.
    """
    cls = registry.find_technique(technique)
    record = _records()[technique]
    try:
        defaults: dict[str, Any] = cls().settings()
    except (TypeError, AttnctlError):  # something is required
        defaults = {}
    made = [
        _control(technique, parameter, defaults.get(parameter.name))
        for parameter in record.parameters
        if not any(kind in parameter.type for kind in _NO_PLAIN_VALUES)
    ]
    return tuple(sorted(made, key=lambda control: control.kind != "words"))


def describe_all() -> list[dict[str, Any]]:
    """Every technique with its controls, as plain values for the page."""
    return [
        {
            "name": record.name,
            "summary": record.summary.replace("``", ""),
            "for_pictures": _is_for_one_picture(record),
            "for_edits": not _ONLY_CLIPS & {parameter.name for parameter in record.parameters}
            and not (_is_for_motion(record) or _is_for_instructions(record)),
            "for_clips": _is_for_clips(record),
            "controls": [asdict(control) for control in controls_of(record.name)],
        }
        for record in _records().values()
        if record.name not in HIDDEN
    ]


def _is_for_one_picture(record: TechniqueRecord) -> bool:
    """Whether a technique acts in a run of one picture, not between pictures or in clips alone."""
    types = {parameter.name: parameter.type for parameter in record.parameters}
    is_between = types.get("target", "").startswith("int") or _is_for_motion(record)
    is_between = is_between or _is_for_instructions(record)
    return not _NOT_ONE_PICTURE & types.keys() and not is_between


def _is_for_motion(record: TechniqueRecord) -> bool:
    """Whether a technique acts on attention over time, which models of pictures have not."""
    return record.families.startswith("UNetMotion")


def _is_for_instructions(record: TechniqueRecord) -> bool:
    """Whether a technique needs a pipeline that edits by instruction, which no page runs."""
    return record.families.startswith("InstructPix2Pix")


def _is_for_clips(record: TechniqueRecord) -> bool:
    """Whether a technique acts where the items of a batch are the frames of one clip."""
    types = {parameter.name: parameter.type for parameter in record.parameters}
    counts_items = any(types.get(name, "").startswith("int") for name in ("source", "target"))
    is_between = counts_items or bool(_BETWEEN_ITEMS & types.keys())
    return not (is_between or _is_for_instructions(record))


def read_parameters(technique: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Read what stands in the controls; those that are empty by default and now are left out.

    Raises:
        SettingError: a value has not the form that its control gives.
        RecipeError: a value is no YAML.
    """
    known = {control.name: control for control in controls_of(technique)}
    read: dict[str, Any] = {}
    for name, value in shown.items():
        control = known.get(name)
        if control is None:
            read[name] = value  # the technique says what it does not know
        elif value is not None and (value != "" or control.default != ""):
            read[name] = _read(technique, control, value)
    return read


def show_parameters(technique: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Write plain values as the controls show them."""
    known = {control.name: control for control in controls_of(technique)}
    return {
        name: _show(known[name].kind, value) for name, value in parameters.items() if name in known
    }


def flow_text(value: Any) -> str:
    """Write a plain value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _control(technique: str, parameter: ParameterRecord, default: Any) -> Control:
    text = parameter.help
    kind = _kind(parameter)
    choices: tuple[str, ...] = ()
    if kind == "text":
        choices = _choices(technique, parameter.name, default, text)
        kind = "choice" if choices else kind
    low, high = _bounds(text) if kind == "number" else (None, None)
    return Control(
        parameter.name,
        kind,
        _show(kind, default),
        text.replace("``", ""),
        low,
        high,
        whole=parameter.type == "int",
        choices=choices,
        reads_files="HeadSet" in parameter.type or _FILE.search(text) is not None,
    )


def _kind(parameter: ParameterRecord) -> str:
    if parameter.name in _WORDS:
        return "words"
    plain = {
        "bool": "switch", "int": "number", "float": "number", "str": "text",
        "Schedule": "steps", "Where": "where",
    }  # fmt: skip
    return plain.get(parameter.type, "value")


def _bounds(text: str) -> tuple[float | None, float | None]:
    """Read the range that a parameter's text gives: ``in [0, 1]``, ``from 0``, ``at least 1``."""
    both = _BETWEEN.search(text) or _FROM_TO.search(text)
    if both:
        return float(both[1]), float(both[2])
    lower = _FROM.search(text)
    return (float(lower[1]), None) if lower else (None, None)


def _choices(technique: str, name: str, default: Any, text: str) -> tuple[str, ...]:
    """Names in quotes in a parameter's text that the technique accepts."""
    quoted = [found[1] or found[2] for found in _QUOTED.finditer(text)]
    if default not in quoted:
        return ()
    return tuple(
        choice for choice in dict.fromkeys(quoted) if _is_accepted(technique, name, choice)
    )


def _is_accepted(technique: str, name: str, choice: str) -> bool:
    try:
        registry.build(technique, {name: choice})
    except (AttnctlError, TypeError):
        return False
    return True


def _show(kind: str, value: Any) -> Any:
    if value is None:
        return ""
    if kind == "words":
        return [value] if isinstance(value, str | int) else list(value)
    if kind != "value" or isinstance(value, str):
        return value
    return flow_text(value)


def _read(technique: str, control: Control, value: Any) -> Any:
    if not _fits(control.kind, value):
        raise SettingError(f"{technique}: {control.name}={value!r:.100} is no {control.kind}")
    if control.kind == "number":
        return int(value) if control.whole and float(value).is_integer() else value
    if control.kind == "value":
        return parse_yaml(value, f"{technique}: {control.name}")[0]
    return value


def _fits(kind: str, value: Any) -> bool:
    if kind == "switch":
        return isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "words":
        return isinstance(value, list) and all(isinstance(word, str | int) for word in value)
    return isinstance(value, str)
