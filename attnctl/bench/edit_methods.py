"""The methods that the edit benchmark compares, and their settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.bench.edit_cases import EditCase
from attnctl.bench.edit_solvers import beside_trajectory, controlled_down, from_half_way
from attnctl.calls import PredictionCall
from attnctl.inversion.driven import Solver
from attnctl.inversion.hosts import Call, drive
from attnctl.inversion.running import Inversion, invert
from attnctl.inversion.solvers import euler_down, flow_edit
from attnctl.registry import build
from attnctl.technique import Technique

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


@dataclass(frozen=True)
class ItemGuidance(Technique):
    """Classifier-free guidance with a weight for each item, as FlowEdit wants it.

    Attributes:
        weights: One weight an item.
    """

    name: ClassVar[str] = "item-guidance"
    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})

    weights: tuple[float, ...] = ()

    def edit_prediction(self, call: PredictionCall) -> None:
        """Join the branches with the weight of each item."""
        cond, uncond = call.get("cond").float(), call.get("uncond").float()
        weights = torch.tensor(self.weights, device=cond.device)
        shaped = weights.view(-1, *[1] * (cond.dim() - 1))
        call.own(uncond + shaped * (cond - uncond))


@dataclass(slots=True)
class Studio:
    """What the methods share for one picture.

    Attributes:
        pipe: The pipeline.
        case: The edit.
        clean: Latents of the source, ``(1, ...)``.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        refinements: Fixed-point iterations of the inversion.
        options: Further arguments of the pipeline.
    """

    pipe: Any
    case: EditCase
    clean: Tensor
    steps: int
    guidance: float
    refinements: int
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
                refinements=self.refinements,
                options=self.options,
            )
        return self._inverted

    def drive(
        self,
        solver: Solver,
        start: Tensor,
        prompts: Sequence[str],
        techniques: Sequence[Technique] = (),
        guidance: float | None = None,
    ) -> Tensor:
        """Let a solver run inside the pipeline; its last latents."""
        size = self.case.picture.size
        weight = self.guidance if guidance is None else guidance
        call = Call(prompts, size, self.steps, weight, options=self.options)
        return drive(self.pipe, solver, start, call, techniques).latents


def edit(studio: Studio, method: Method) -> Tensor:
    """Latents ``(1, ...)`` of the edited picture."""
    return WAYS[method.kind](studio, dict(method.settings))


def _nothing(studio: Studio, settings: dict[str, Any]) -> Tensor:
    return studio.clean


def _regenerate(studio: Studio, settings: dict[str, Any]) -> Tensor:
    return studio.drive(euler_down(), studio.inverted.noise, [str(studio.case.target)])


def _half_way(studio: Studio, settings: dict[str, Any]) -> Tensor:
    solver = from_half_way(settings["strength"], [studio.case.seed])
    return studio.drive(solver, studio.clean, [str(studio.case.target)])


def _flow_edit(studio: Studio, settings: dict[str, Any]) -> Tensor:
    steps = round(settings["share"] * studio.steps)
    solver = flow_edit(steps, 0, settings.get("draws", 1), studio.case.seed)
    weights = (settings["source_guidance"], settings["target_guidance"])
    case = studio.case
    start = torch.cat([studio.clean, studio.clean])
    out = studio.drive(
        solver, start, [str(case.source), str(case.target)], [ItemGuidance(weights)], max(weights)
    )
    return out[1:]


def _rf_inversion(studio: Studio, settings: dict[str, Any]) -> Tensor:
    noise = _rf_noise(studio)
    solver = controlled_down(studio.clean, settings["eta"], settings["stop"])
    return studio.drive(solver, noise, [str(studio.case.target)])


def _rf_noise(studio: Studio) -> Tensor:
    found = invert(
        studio.pipe,
        studio.clean,
        method="rf-inversion",
        steps=studio.steps,
        seed=studio.case.seed,
        options=studio.options,
    )
    return found.noise


def _technique(studio: Studio, settings: dict[str, Any]) -> Tensor:
    """Two rows from the inverted noise; the source's follows its trajectory."""
    case, name = studio.case, settings.pop("technique")
    given = _filled(case, name, settings)
    inverted = studio.inverted
    assert inverted.trajectory is not None  # Euler and DDIM inversions keep one
    prompts = [str(case.source), str(case.source if name == "flux-space" else case.target)]
    start = torch.cat([inverted.noise, inverted.noise])
    solver = beside_trajectory(inverted.trajectory)
    return studio.drive(solver, start, prompts, [build(name, given)])[1:]


def _controlled_technique(studio: Studio, settings: dict[str, Any]) -> Tensor:
    """Two rows from RF-Inversion's noise, both pulled to the picture."""
    case, name = studio.case, settings.pop("technique")
    solver = controlled_down(studio.clean, settings.pop("eta"), settings.pop("stop"))
    noise = _rf_noise(studio)
    prompts = [str(case.source), str(case.target)]
    technique = build(name, _filled(case, name, settings))
    return studio.drive(solver, torch.cat([noise, noise]), prompts, [technique])[1:]


def _filled(case: EditCase, name: str, settings: dict[str, Any]) -> dict[str, Any]:
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
            settings["fine"] = -settings["fine"]
            settings["coarse"] = -settings["coarse"]
    return settings


WAYS: dict[str, Callable[[Studio, dict[str, Any]], Tensor]] = {
    "nothing": _nothing,
    "regenerate": _regenerate,
    "sdedit": _half_way,
    "flow-edit": _flow_edit,
    "rf-inversion": _rf_inversion,
    "technique": _technique,
    "controlled": _controlled_technique,
}
