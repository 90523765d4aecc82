"""The methods that the edit benchmark compares, and their settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnctl.bench.edit.cases import EditCase
from attnctl.inversion.hosts import Call, drive, run_pipeline, sampler_of, working_latents
from attnctl.inversion.running import Inversion, invert
from attnctl.inversion.solvers import flow_edit, noise_and_sample
from attnctl.registry import build
from attnctl.schedule import until
from attnctl.technique import Technique
from attnctl.techniques.item_guidance import ItemGuidance
from attnctl.techniques.rf_control import RFControl
from attnctl.techniques.trajectory_replay import TrajectoryReplay

NOTHING, REGENERATE, SDEDIT = "VAE alone", "regenerated", "SDEdit"


@dataclass(frozen=True, slots=True)
class Method:
    """One way to edit, with its settings.

    Attributes:
        name: What tables call it.
        kind: Which of the ways; a key of `WAYS`.
        settings: Plain values.
        family: Methods among which one setting is chosen.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def family(self) -> str:
        """The name without what stands in brackets."""
        return self.name.partition(" [")[0]

    @property
    def slug(self) -> str:
        """The name as a part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return {"name": self.name, "kind": self.kind, "settings": dict(self.settings)}


@dataclass(slots=True)
class Studio:
    """What the methods share for one picture.

    Attributes:
        pipe: The pipeline.
        case: The edit.
        clean: Latents of the source, ``(1, ...)``.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        options: Further arguments of the pipeline.
    """

    pipe: Any
    case: EditCase
    clean: Tensor
    steps: int
    guidance: float
    options: Mapping[str, Any]
    _inverted: Inversion | None = None

    @property
    def inverted(self) -> Inversion:
        """The inversion of the source with its own prompt, made when it is first needed."""
        if self._inverted is None:
            self._inverted = invert(
                self.pipe,
                self.clean,
                str(self.case.source),
                steps=self.steps,
                options=self.options,
            )
        return self._inverted

    def call(self, prompts: Sequence[str], guidance: float | None = None) -> Call:
        """One call of the pipeline."""
        size = self.case.picture.size
        weight = self.guidance if guidance is None else guidance
        return Call(prompts, size, self.steps, weight, options=self.options)

    def sample(
        self, noise: Tensor, prompts: Sequence[str], techniques: Sequence[Technique] = ()
    ) -> Tensor:
        """Sample with the stock sampler; the last latents."""
        start = working_latents(self.pipe, noise)
        call = self.call(prompts)
        return run_pipeline(self.pipe, sampler_of(self.pipe), start, call, techniques)[0]


def edit(studio: Studio, method: Method) -> Tensor:
    """Latents ``(1, ...)`` of the edited picture."""
    return WAYS[method.kind](studio, dict(method.settings))


def _nothing(studio: Studio, settings: dict[str, Any]) -> Tensor:
    return studio.clean


def _regenerate(studio: Studio, settings: dict[str, Any]) -> Tensor:
    return studio.sample(studio.inverted.noise, [str(studio.case.target)])


def _half_way(studio: Studio, settings: dict[str, Any]) -> Tensor:
    first = studio.steps - max(1, round(settings["strength"] * studio.steps))
    solver = noise_and_sample(first, studio.case.seed)
    call = studio.call([str(studio.case.target)])
    return drive(studio.pipe, solver, studio.clean, call).latents


def _flow_edit(studio: Studio, settings: dict[str, Any]) -> Tensor:
    case, steps = studio.case, round(settings["share"] * studio.steps)
    weights = (settings["source_guidance"], settings["target_guidance"])
    call = studio.call([str(case.source), str(case.target)], max(weights))
    start = torch.cat([studio.clean, studio.clean])
    solver = flow_edit(steps, 0, 1, case.seed)
    return drive(studio.pipe, solver, start, call, [ItemGuidance(weights)]).latents[1:]


def _rf_inversion(studio: Studio, settings: dict[str, Any]) -> Tensor:
    found = _rf_inverted(studio)
    return studio.sample(found.noise, [str(studio.case.target)], [_control(found, settings)])


def _rf_inverted(studio: Studio) -> Inversion:
    return invert(
        studio.pipe,
        studio.clean,
        method="rf-inversion",
        steps=studio.steps,
        seed=studio.case.seed,
        options=studio.options,
    )


def _control(found: Inversion, settings: dict[str, Any]) -> RFControl:
    stop = float(settings.pop("stop"))
    return RFControl(eta=settings.pop("eta"), steps=until(stop)).with_inversion(found)


def _technique(studio: Studio, settings: dict[str, Any]) -> Tensor:
    """Two rows from the inverted noise; the source's follows its trajectory."""
    replay = TrajectoryReplay().with_inversion(studio.inverted)
    return _beside_source(studio, settings, [replay])


def _unreplayed_technique(studio: Studio, settings: dict[str, Any]) -> Tensor:
    """The same without the trajectory, to see what it is worth."""
    return _beside_source(studio, settings, [])


def _beside_source(studio: Studio, settings: dict[str, Any], first: list[Technique]) -> Tensor:
    case, name = studio.case, settings.pop("technique")
    technique = build(name, filled_settings(case, name, settings))
    noise = torch.cat([studio.inverted.noise] * 2)
    return studio.sample(noise, _prompts(case, name), [*first, technique])[1:]


def _controlled_technique(studio: Studio, settings: dict[str, Any]) -> Tensor:
    """Two rows from RF-Inversion's noise, both pulled to the picture."""
    case, name, found = studio.case, settings.pop("technique"), _rf_inverted(studio)
    control = _control(found, settings)
    technique = build(name, filled_settings(case, name, settings))
    noise = torch.cat([found.noise] * 2)
    return studio.sample(noise, _prompts(case, name), [control, technique])[1:]


def _prompts(case: EditCase, technique: str) -> list[str]:
    """Prompts of source and target; FluxSpace's target keeps the source's."""
    return [str(case.source), str(case.source if technique == "flux-space" else case.target)]


def filled_settings(case: EditCase, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that follow from the edit: words, and the sign of what goes away."""
    if name == "prompt-to-prompt":
        old, new = case.subjects
        settings["edit"] = "replace" if case.swaps_words else "refine"
        is_blended = settings.pop("blend", False) and case.changed is not None
        if is_blended:
            settings["blend_words"] = [old, new]
    if name == "flux-space":
        settings["prompt"] = case.phrase
        if case.kind == "remove":
            settings |= {"fine": -settings["fine"], "coarse": -settings["coarse"]}
    return settings


WAYS: dict[str, Callable[[Studio, dict[str, Any]], Tensor]] = {
    "nothing": _nothing,
    "regenerate": _regenerate,
    "sdedit": _half_way,
    "flow-edit": _flow_edit,
    "rf-inversion": _rf_inversion,
    "technique": _technique,
    "unreplayed": _unreplayed_technique,
    "controlled": _controlled_technique,
}
