"""What the guidance benchmark compares, for each model: sweeps and the chosen settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnctl.bench.conditions import PLAIN, Condition, with_own_names
from attnctl.bench.guidance.settings import (
    CFG,
    Setting,
    make_grid,
    read_choice,
    read_head_sets,
)
from attnctl.errors import SettingError


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is tried on the pipelines of one class, and what was chosen.

    Attributes:
        scales: Weights of perturbed guidance that are tried.
        strengths: Strengths that are tried.
        wheres: Places that are tried.
        chosen: What was chosen on tuning prompts.
    """

    scales: tuple[float, ...]
    wheres: tuple[str, ...]
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    chosen: tuple[Setting, ...] = ()


def _chosen(scale: float, where: str, heads: Setting) -> tuple[Setting, ...]:
    """PAG and three strengths at one place and scale, and a head set."""
    names = {1.0: "PAG", 0.25: "SoftPAG 0.25", 0.5: "SoftPAG 0.5", 0.75: "SoftPAG 0.75"}
    soft = [
        Setting(name=name, scale=scale, strength=strength, where=where)
        for strength, name in names.items()
    ]
    return (*soft, heads)


# The heads that `attnctl headhunter` found: benchmarks/headhunter-shapes*.yaml.
_UNET_HEADS = ((7, 1), (9, 1), (7, 3), (0, 3))
_MMDIT_HEADS = ((0, 3), (0, 2), (3, 1), (0, 0), (0, 1), (5, 0), (1, 1), (2, 1))

SWEEPS: dict[str, Sweep] = {
    "StableDiffusionPipeline": Sweep(
        scales=(1.0, 2.5),
        wheres=("down:self", "up:self"),  # mid:self changed no verdict of 40
        chosen=_chosen(
            1.0,
            "down:self",
            Setting(name="SoftPAG heads", scale=3.0, strength=0.5, heads=_UNET_HEADS),
        ),
    ),
    "StableDiffusion3Pipeline": Sweep(
        scales=(1.5, 3.0),
        wheres=("layers=0", "layers=2-3"),
        chosen=_chosen(
            1.5,
            "layers=0",
            Setting(name="SoftPAG heads", scale=3.0, strength=1.0, heads=_MMDIT_HEADS),
        ),
    ),
}
"""By names of pipeline classes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asks to compare; ``None`` takes what is built in for the model.

    Attributes:
        tune: Sweep a grid instead of comparing chosen settings.
        choice: File with chosen settings.
        scales: Weights of perturbed guidance that a sweep tries.
        strengths: Strengths that it tries.
        wheres: Places that it tries.
        heads: Files of head sets that it tries.
        guidances: Other weights of classifier-free guidance that it tries; none by default.
    """

    tune: bool = False
    choice: Path | None = None
    scales: Sequence[float] | None = None
    strengths: Sequence[float] | None = None
    wheres: Sequence[str] | None = None
    heads: Sequence[Path] | None = None
    guidances: Sequence[float] | None = None

    def __post_init__(self) -> None:
        tried = (self.scales, self.strengths, self.wheres, self.heads, self.guidances)
        if not self.tune and any(tried):
            raise SettingError(
                "--scale, --strength, --where, --heads and --other-guidance are what --tune tries;"
                " add --tune, or give chosen settings with --choice"
            )
        if self.tune and self.choice:
            raise SettingError("--choice has nothing to choose with --tune; leave one of them out")

    def conditions(self, pipe: Any) -> tuple[list[Condition], list[Setting]]:
        """Conditions for a pipeline, and the grid if this is a sweep.

        Raises:
            SettingError: nothing was chosen for this pipeline yet, or a value cannot be used.
        """
        sweep = _sweep_of(pipe)
        if self.tune:
            wheres = self.wheres or (() if self.heads else sweep.wheres)
            grid = make_grid(
                self.scales or sweep.scales,
                self.strengths or sweep.strengths,
                {**{where: where for where in wheres}, **read_head_sets(self.heads or ())},
            )
            return tuning_conditions(grid, self.guidances or ()), grid
        return table_conditions(read_choice(self.choice) if self.choice else sweep.chosen), []


def _sweep_of(pipe: Any) -> Sweep:
    name = type(pipe).__name__
    if name not in SWEEPS:
        raise SettingError(
            f"the guidance benchmark knows no settings for {name}; it measures " + ", ".join(SWEEPS)
        )
    return SWEEPS[name]


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
