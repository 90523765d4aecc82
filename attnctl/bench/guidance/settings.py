"""Settings of perturbed guidance: a grid of them, the choice among them, files that keep it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from attnctl.bench.conditions import Condition
from attnctl.errors import SettingError

CFG = "CFG"


Head = Annotated[tuple[int | str, int], Field(strict=False)]


class Setting(BaseModel):
    """One way to perturb attention, beside classifier-free guidance.

    Attributes:
        name: What the table calls it.
        scale: Weight of the perturbed guidance.
        strength: How far the maps are pulled to the identity; 1 is PAG.
        where: Attention sites, and heads if not all of them; or
        heads: a head set: layer (number or path) and head of each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]
    scale: Annotated[float, Field(gt=0)]
    strength: Annotated[float, Field(gt=0, le=1)]
    where: Annotated[str, Field(min_length=1)] | None = None
    heads: Annotated[tuple[Head, ...], Field(strict=False, min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_one_place(self) -> Setting:
        if (self.where is None) == (self.heads is None):
            raise PydanticCustomError("place", "give either where or heads")
        return self

    @property
    def family(self) -> str:
        """What one setting is chosen for: a head set, PAG, or SoftPAG at one strength."""
        if self.heads is not None or "heads=" in str(self.where):
            return "SoftPAG heads"
        return "PAG" if self.strength == 1 else f"SoftPAG {self.strength:g}"

    @property
    def place(self) -> str:
        """Where it acts, for people."""
        return str(self.where) if self.heads is None else f"{len(self.heads)} heads"

    def to_plain(self) -> dict[str, Any]:
        """Plain values of everything that is set."""
        return self.model_dump(mode="json", exclude_none=True)

    def condition(self) -> Condition:
        """The condition that draws with it."""
        given = self.to_plain()
        return Condition(given.pop("name"), (("soft-pag", given),))


def make_grid(
    scales: Sequence[float],
    strengths: Sequence[float],
    places: Mapping[str, str | Sequence[Head]],
) -> list[Setting]:
    """Every combination, named after its values.

    Args:
        scales: Weights of the perturbed guidance.
        strengths: How far maps are pulled.
        places: Sites, or the heads of a head set, under the names that they are shown with.

    Raises:
        SettingError: a value cannot be used.
    """
    try:
        return [
            Setting(
                name=f"u={strength:g} w={scale:g} {name}",
                scale=scale,
                strength=strength,
                where=place if isinstance(place, str) else None,
                heads=None if isinstance(place, str) else tuple(place),
            )
            for (name, place), strength, scale in itertools.product(
                places.items(), strengths, scales
            )
        ]
    except ValidationError as error:
        raise SettingError(f"--scale, --strength, --where: {_first(error)}") from None


def read_head_sets(files: Sequence[Path]) -> dict[str, list[Head]]:
    """Read the heads of head sets; strengths of single heads give way to those of the sweep."""
    from attnctl.heads import HeadSet

    sets: dict[str, list[Head]] = {}
    for file in files:
        chosen = HeadSet.from_file(file).heads
        if file.stem in sets:
            raise SettingError(f"--heads: two files are called {file.stem!r}; rename one")
        pairs = [(head.path if head.layer is None else head.layer, head.head) for head in chosen]
        sets[file.stem] = cast("list[Head]", pairs)  # a head has a layer's number or its path
    return sets


def choose(
    grid: Sequence[Setting], exact: Mapping[str, float], distance: Mapping[str, float]
) -> list[Setting]:
    """Choose one setting of each family by the rule of the benchmark.

    Of the settings whose pictures are not farther from real scenes than those of classifier-free
    guidance alone, the one with the most exact pictures; the nearest one where these are equal.
    If all are farther, the nearest one.

    Args:
        grid: What was tried.
        exact: Share of exact pictures by name of the condition.
        distance: Fréchet distance by name of the condition, `CFG` among them.

    Returns:
        The chosen settings under the names of their families.
    """
    chosen: list[Setting] = []
    for family in dict.fromkeys(setting.family for setting in grid):
        tried = [setting for setting in grid if setting.family == family]
        near = [setting for setting in tried if distance[setting.name] <= distance[CFG]]
        if near:
            best = max(near, key=lambda s: (exact[s.name], -distance[s.name]))
        else:
            best = min(tried, key=lambda s: distance[s.name])
        chosen.append(best.model_copy(update={"name": family}))
    return chosen


_LIST = TypeAdapter(list[Setting])


def read_choice(path: Path) -> list[Setting]:
    """Read the settings that a tuning run chose.

    Raises:
        SettingError: the file cannot be read or used.
    """
    try:
        return _LIST.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        what = _first(error) if isinstance(error, ValidationError) else str(error)
        raise SettingError(
            f"--choice {str(path)!r}: {what}; give the choice.json of a --tune run"
        ) from None


def choice_text(settings: Sequence[Setting]) -> str:
    """Settings as :func:`read_choice` reads them."""
    return json.dumps([setting.to_plain() for setting in settings], indent=1) + "\n"


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}, got {problem['input']!r}"
