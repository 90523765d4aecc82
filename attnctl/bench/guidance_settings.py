"""What the guidance benchmark compares: guidance by scale, strength and place, for each model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from attnctl.bench.conditions import PLAIN, Condition, with_own_names
from attnctl.errors import SettingError

CFG = "CFG"


class Setting(BaseModel):
    """One way to perturb attention, beside classifier-free guidance.

    Attributes:
        name: What the table calls it.
        scale: Weight of the perturbed guidance.
        strength: How far the maps are pulled to the identity; 1 is PAG.
        where: Attention sites, and heads if not all of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]
    scale: Annotated[float, Field(gt=0)]
    strength: Annotated[float, Field(gt=0, le=1)]
    where: Annotated[str, Field(min_length=1)]

    @property
    def family(self) -> str:
        """What one setting is chosen for: a head set, PAG, or SoftPAG at one strength."""
        if "heads=" in self.where:
            return "SoftPAG heads"
        return "PAG" if self.strength == 1 else f"SoftPAG {self.strength:g}"

    def condition(self) -> Condition:
        """The condition that draws with it."""
        parameters = {"scale": self.scale, "strength": self.strength, "where": self.where}
        return Condition(self.name, (("soft-pag", parameters),))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the pipelines of one class are sampled and guided.

    Attributes:
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        options: More arguments of the pipeline's call.
        scales: Weights of perturbed guidance that are tried.
        strengths: Strengths that are tried.
        wheres: Places that are tried.
        chosen: What was chosen on tuning prompts.
    """

    steps: int
    guidance: float
    scales: tuple[float, ...]
    wheres: tuple[str, ...]
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    chosen: tuple[Setting, ...] = ()


SAMPLING: dict[str, Sampling] = {
    "StableDiffusionPipeline": Sampling(
        steps=25,
        guidance=5.0,
        scales=(0.5, 1.5),
        wheres=("mid:self", "up:self"),
    ),
    "StableDiffusion3Pipeline": Sampling(
        steps=20,
        guidance=4.0,
        scales=(0.5, 1.5),
        wheres=("layers=2-3", "layers=4-5"),
        # Without a T5 encoder its tokens are zeros: one is as good as 256, and much cheaper.
        options={"max_sequence_length": 1},
    ),
}
"""The one place for what differs between models; keys are names of pipeline classes."""


def sampling_of(pipe: Any) -> Sampling:
    """How this pipeline is sampled.

    Raises:
        SettingError: it is of no known class.
    """
    name = type(pipe).__name__
    if name not in SAMPLING:
        raise SettingError(
            f"the guidance benchmark knows no settings for {name}; it measures "
            + ", ".join(SAMPLING)
        )
    return SAMPLING[name]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asks to compare; ``None`` takes what is built in for the model.

    Attributes:
        tune: Sweep a grid instead of comparing chosen settings.
        choice: File with chosen settings.
        scales: Weights of perturbed guidance that a sweep tries.
        strengths: Strengths that it tries.
        wheres: Places that it tries.
        guidances: Other weights of classifier-free guidance that it tries; none by default.
    """

    tune: bool = False
    choice: Path | None = None
    scales: Sequence[float] | None = None
    strengths: Sequence[float] | None = None
    wheres: Sequence[str] | None = None
    guidances: Sequence[float] | None = None

    def __post_init__(self) -> None:
        tried = (self.scales, self.strengths, self.wheres, self.guidances)
        if not self.tune and any(tried):
            raise SettingError(
                "--scale, --strength, --where and --other-guidance are what --tune tries; add"
                " --tune, or give chosen settings with --choice"
            )
        if self.tune and self.choice:
            raise SettingError("--choice has nothing to choose with --tune; leave one of them out")

    def conditions(self, pipe: Any) -> tuple[list[Condition], list[Setting]]:
        """Conditions for a pipeline, and the grid if this is a sweep.

        Raises:
            SettingError: nothing was chosen for this pipeline yet, or a value cannot be used.
        """
        sampling = sampling_of(pipe)
        if self.tune:
            grid = make_grid(
                self.scales or sampling.scales,
                self.strengths or sampling.strengths,
                self.wheres or sampling.wheres,
            )
            return tuning_conditions(grid, self.guidances or ()), grid
        return table_conditions(read_choice(self.choice) if self.choice else sampling.chosen), []


def table_conditions(settings: Sequence[Setting]) -> list[Condition]:
    """Conditions of the table: no guidance, classifier-free guidance, and each setting beside it.

    Raises:
        SettingError: there is no setting, or two have the same name.
    """
    if not settings:
        raise SettingError(
            "no settings were chosen for this model yet; choose some with --tune, and give the"
            " file that it writes with --choice"
        )
    first = [Condition(PLAIN, guidance=1.0), Condition(CFG)]
    return with_own_names([*first, *(setting.condition() for setting in settings)])


def tuning_conditions(grid: Sequence[Setting], guidances: Sequence[float]) -> list[Condition]:
    """Conditions of a sweep: classifier-free guidance, other weights of it, and a grid."""
    others = [Condition(f"{CFG} {weight:g}", guidance=weight) for weight in guidances]
    return with_own_names([Condition(CFG), *others, *(setting.condition() for setting in grid)])


def make_grid(
    scales: Sequence[float], strengths: Sequence[float], wheres: Sequence[str]
) -> list[Setting]:
    """Every combination, named after its values.

    Raises:
        SettingError: a value cannot be used.
    """
    try:
        return [
            Setting(
                name=f"u={strength:g} w={scale:g} {where}",
                scale=scale,
                strength=strength,
                where=where,
            )
            for where, strength, scale in itertools.product(wheres, strengths, scales)
        ]
    except ValidationError as error:
        raise SettingError(f"--scale, --strength or --where: {_first(error)}") from None


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
    return json.dumps([setting.model_dump() for setting in settings], indent=1) + "\n"


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}, got {problem['input']!r}"
