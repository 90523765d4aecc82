"""A recipe: everything that decides what a picture looks like, in a file, checked."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from attnctl.canonical import canonical_json
from attnctl.errors import AttnctlError, RecipeError, nearest
from attnctl.files import write_text
from attnctl.yaml_files import Place, read_yaml, write_yaml

if TYPE_CHECKING:
    from attnctl.technique import Technique

MAX_SEED = 2**63 - 1
MAX_PROMPT = 1_000_000

_SIZE = re.compile(r"^\s*(\d{1,5})\s*[xX×]\s*(\d{1,5})\s*$")  # noqa: RUF001


def _read_size(value: object) -> object:
    """Accept ``"WxH"``, one number for a square, or ``[width, height]``; keep ``"WxH"``."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value}x{value}"
    if isinstance(value, list | tuple) and len(value) == 2:
        value = f"{value[0]}x{value[1]}"
    found = _SIZE.match(value) if isinstance(value, str) else None
    if found is None or int(found[1]) < 1 or int(found[2]) < 1:
        raise PydanticCustomError(
            "size", "{value} is no size; write width x height in pixels, such as 512x512",
            {"value": repr(value)},
        )  # fmt: skip
    return f"{int(found[1])}x{int(found[2])}"


def _check_prompt(value: object) -> object:
    """Accept a text or a list of texts."""
    texts: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError(
            "prompt", "{value} is no text and no list of texts; put quotes around a number",
            {"value": repr(value)[:200]},
        )  # fmt: skip
    if any(len(str(text)) > MAX_PROMPT for text in texts):
        raise PydanticCustomError("prompt", "longer than a million characters; shorten it")
    if not all(str(text).isprintable() or _is_encodable(str(text)) for text in texts):
        raise PydanticCustomError("prompt", "holds half of a character, which no file can keep")
    return texts if isinstance(value, list | tuple) else value


def _is_encodable(text: str) -> bool:
    return len(text.encode("utf-8", "ignore").decode("utf-8")) == len(text)


Prompt = Annotated[str | list[str], BeforeValidator(_check_prompt)]
Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Size = Annotated[str, BeforeValidator(_read_size)]


class TechniqueEntry(BaseModel):
    """One technique of a recipe: its name and its parameters as plain values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    parameters: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _read_short_forms(cls, value: object) -> object:
        """Accept ``pag``, ``{pag: null}`` and ``{soft-pag: {scale: 2.0}}``."""
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
            name, parameters = next(iter(value.items()))
            if parameters is None or isinstance(parameters, Mapping):
                return {"name": name, "parameters": dict(parameters or {})}
        if isinstance(value, Mapping) and "name" in value:
            return dict(value)
        raise PydanticCustomError(
            "technique",
            "{value} is no technique; write `- pag` or `- soft-pag: {scale: 2.0}`",
            {"value": repr(value)[:200]},
        )

    @field_validator("parameters", mode="after")
    @classmethod
    def _restore_number_keys(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        """JSON turns the keys of ``thresholds: {0: 0.05}`` into texts; make them numbers again."""
        return {name: _with_number_keys(value) for name, value in parameters.items()}

    @model_validator(mode="after")
    def _build_once(self) -> TechniqueEntry:
        """Let the technique check its name and values; keep what it has read from files."""
        inlined = self.build().inlined()
        object.__setattr__(self, "parameters", {**self.parameters, **inlined})  # it is frozen
        return self

    def build(self) -> Technique:
        """Make the technique.

        Raises:
            AttnctlError: the name or a parameter is unknown, or a value cannot be used.
        """
        from attnctl import registry

        try:
            return registry.build(self.name, self.parameters)
        except TypeError as error:
            raise RecipeError(f"{self.name}: {_readable_type_error(error)}") from None

    def to_plain(self) -> str | dict[str, Any]:
        """Write the short form that a person would write."""
        return {self.name: self.parameters} if self.parameters else self.name


class Recipe(BaseModel):
    """What to make and how; ``None`` leaves a choice to the pipeline.

    Attributes:
        model: Hub id, local folder, or bundled name.
        prompt: What the picture shows; a list makes pictures for each.
        negative: What it should not show.
        seed: Seed of the first picture; picture ``i`` uses ``seed + i``. ``None``: a random one.
        count: Pictures for each prompt.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        size: Width x height, pixels.
        scheduler: Class name of a diffusers scheduler, such as ``DDIMScheduler``.
        frames: Frames of a clip, for models that make videos.
        fps: Frames a second of its file.
        techniques: What steers the run, in order.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, str_strip_whitespace=False
    )

    model: Annotated[str, Field(min_length=1)] = "shapes"
    prompt: Prompt
    negative: Text | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=1000)] | None = None
    size: Size | None = None
    scheduler: Annotated[str, Field(min_length=1)] | None = None
    frames: Annotated[int, Field(ge=1, le=10_000)] | None = None
    fps: Annotated[float, Field(gt=0, le=240)] | None = None
    techniques: Annotated[list[TechniqueEntry], Field(strict=False)] = []

    @classmethod
    def from_dict(cls, values: Any, *, name: str = "recipe") -> Recipe:
        """Check plain values.

        Raises:
            RecipeError: listing everything that is wrong, one a line.
        """
        return cls._checked(values, name, {})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a YAML or JSON recipe.

        Raises:
            RecipeError: listing everything that is wrong, each with ``file:line:``.
        """
        values, lines = read_yaml(Path(path))
        return cls._checked(values, os.fspath(path), lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recipe as YAML; :meth:`from_file` reads an equal one."""
        return write_text(path, write_yaml(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values of everything that is set, techniques in their short form."""
        values = self.model_dump(exclude={"techniques"}, exclude_none=True)
        if self.techniques:
            values["techniques"] = [entry.to_plain() for entry in self.techniques]
        return values

    def changed(self, **changes: Any) -> Recipe:
        """Copy the recipe with some fields replaced, checked again."""
        return Recipe.from_dict({**self.to_dict(), **changes})

    def canonical(self) -> str:
        """Write the one JSON text that equal recipes share; ids are made from it."""
        return canonical_json(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    @property
    def id(self) -> str:
        """Short name of exactly this recipe: 12 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode("utf-8")).hexdigest()[:12]

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Width and height."""
        if self.size is None:
            return None
        width, height = self.size.split("x")
        return int(width), int(height)

    def build_techniques(self) -> list[Technique]:
        """Make the techniques, in order."""
        return [entry.build() for entry in self.techniques]

    @classmethod
    def _checked(cls, values: Any, name: str, lines: Mapping[Place, int]) -> Recipe:
        if values is None:
            raise RecipeError(f"{name}: empty; a recipe needs at least `prompt: ...`")
        if not isinstance(values, Mapping):
            raise RecipeError(
                f"{name}: a recipe is a list of `key: value` lines, got {type(values).__name__}"
            )
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise RecipeError(explain(error, cls, name, lines)) from None


def explain(
    error: ValidationError, model: type[BaseModel], name: str, lines: Mapping[Place, int]
) -> str:
    """Say everything that is wrong, one a line, each with ``file:line:`` and what is allowed."""
    found: dict[str, int] = {}
    for place, sentence in sentences(error, model):
        line = _line(place, lines)
        where = f"{name}:{line}: " if line else f"{name}: " if name else ""
        found[where + sentence] = line or 0
    return "\n".join(sorted(found, key=lambda text: found[text]))


def sentences(error: ValidationError, model: type[BaseModel]) -> list[tuple[Place, str]]:
    """Say everything that is wrong, each with the place of the value."""
    return [
        (problem["loc"], _sentence(problem, problem["loc"], model))
        for problem in error.errors(include_url=False)
    ]


def _sentence(problem: Any, place: Place, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in place)
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, AttnctlError):
        return str(cause)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {nearest(str(place[-1]), model.model_fields)}"
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    if problem["type"] in ("size", "technique", "prompt"):
        return f"{key}: {problem['msg']}"
    message = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{key}: {message}, got {problem['input']!r:.200}"


def _with_number_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_as_number(key): _with_number_keys(item) for key, item in value.items()}
    return [_with_number_keys(item) for item in value] if isinstance(value, list) else value


def _as_number(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    for kind in (int, float):
        try:
            return kind(key)
        except ValueError:
            continue
    return key


def _line(place: Place, lines: Mapping[Place, int]) -> int | None:
    """Line of the value, or of the nearest thing around it."""
    for length in range(len(place), -1, -1):
        if place[:length] in lines:
            return lines[place[:length]]
    return None


def _readable_type_error(error: TypeError) -> str:
    text = re.sub(r"^\S*__init__\(\) ", "", str(error))
    return text.replace("positional argument", "parameter").replace(" required", " needed", 1)
