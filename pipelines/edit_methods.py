"""The ways to edit a picture: beside its inversion, with FlowEdit, or from the target alone."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.errors import SettingError
from attnctl.inversion import Inversion, decode, encode, invert, sampler_of
from attnctl.inversion.driven import OnEvaluation, Solver
from attnctl.inversion.hosts import Call, drive, is_packed, run_pipeline, working_latents
from attnctl.inversion.pictures import packed
from attnctl.inversion.solvers import fireflow, flow_edit, midpoint, noise_and_sample
from attnctl.report import Report
from attnctl.technique import Technique
from attnctl.techniques.item_guidance import ItemGuidance
from attnctl.techniques.keep_outside import KeepOutside
from attnctl.techniques.rf_control import RFControl
from attnctl.techniques.trajectory_replay import TrajectoryReplay

from .edit_settings import EditSettings

SOURCE_RATIO = 0.26
"""FlowEdit's guidance of the source over that of the target: 3.5 / 13.5 and 1.5 / 5.5."""


@dataclass(slots=True)
class Made:
    """Pictures of one run."""

    reconstruction: Image.Image
    edited: Image.Image
    evaluations: int
    report: Report | None
    inversion: Inversion | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """One edit with every choice made."""

    pipe: Any
    picture: Image.Image
    source: str
    target: str
    settings: EditSettings
    techniques: tuple[Technique, ...]
    white: np.ndarray | None
    on_evaluation: OnEvaluation | None

    def run(self, inversion: Inversion | None) -> Made:
        """Edit, with an inversion of the same picture if there is one already."""
        if self.settings.inverts:
            return self._from_inversion(inversion or self._invert())
        clean = encode(self.pipe, [self.picture])
        if self.settings.method == "flow-edit":
            return self._flow_edit(clean)
        return self._target_alone(clean)

    def _invert(self) -> Inversion:
        chosen = self.settings
        with_source = (chosen.inverted_with or _usual_prompt(chosen.method)) == "source"
        return invert(
            self.pipe,
            self.picture,
            self.source if with_source else "",
            method=chosen.method,
            steps=chosen.steps,
            refinements=chosen.refinements,
            guidance=chosen.inversion_guidance,
            nudge=chosen.nudge,
            gamma=chosen.gamma,
            consistent=chosen.consistent,
            seed=chosen.seed,
            on_evaluation=self.on_evaluation,
        )

    def _from_inversion(self, inversion: Inversion) -> Made:
        self._refuse_other_inversion(inversion)
        start = torch.cat([inversion.noise] * 2)
        techniques = self._beside_source(inversion)
        solver = self._sampling_solver(inversion)
        call = self._call([self.source, self.target])
        if solver is not None:
            run = drive(
                self.pipe, solver, start, call, techniques, on_evaluation=self.on_evaluation
            )
            latents, evaluations, report = run.latents, run.evaluations, run.report
        else:
            latents, report = run_pipeline(
                self.pipe,
                sampler_of(self.pipe),
                working_latents(self.pipe, start),
                self._watched(call),
                techniques,
            )
            evaluations = self.settings.steps
        reconstruction, edited = decode(self.pipe, latents, self.picture.size)
        return Made(reconstruction, edited, inversion.evaluations + evaluations, report, inversion)

    def _sampling_solver(self, inversion: Inversion) -> Solver | None:
        """The solver of the way down; ``None``: the stock sampler.

        FireFlow looks ahead between steps, where nothing can be overwritten, so beside a replayed
        source the stock sampler runs.
        """
        if inversion.method == "rf-solver":
            return midpoint(up=False)
        is_alone = not self.settings.replay and self.white is None
        return fireflow(up=False) if inversion.method == "fireflow" and is_alone else None

    def _beside_source(self, inversion: Inversion) -> list[Technique]:
        """The user's techniques, with those that hold the source to its inversion."""
        given = [_told(technique, inversion) for technique in self.techniques]
        names = {technique.name for technique in given}
        made: list[Technique] = []
        can_replay = self.settings.replay and inversion.trajectory is not None
        if can_replay and "trajectory-replay" not in names:
            is_euler = self._sampling_solver(inversion) is None
            replay = TrajectoryReplay(match="timestep" if is_euler else "index")
            made.append(replay.with_inversion(inversion))
        if inversion.method == "rf-inversion" and "rf-control" not in names:
            made.append(RFControl().with_inversion(inversion))
        made += given
        if self.white is not None:
            made.append(KeepOutside(self._latent_mask(inversion.clean)))
        return made

    def _flow_edit(self, clean: Tensor) -> Made:
        chosen = self.settings
        guidance = chosen.guidance or 0.0
        share = chosen.edited_share
        if share is None:
            share = 24 / 28 if is_packed(self.pipe) else 33 / 50
        n_max = round(share * chosen.steps)
        n_min = min(n_max, round(chosen.sampled_share * chosen.steps))
        ratio = chosen.source_guidance
        low = SOURCE_RATIO * guidance if ratio is None else ratio
        call = self._call([self.source, self.target])
        call = replace(call, guidance=max(guidance, low))
        techniques = [ItemGuidance((low, guidance)), *self.techniques]
        solver = flow_edit(n_max, n_min, chosen.averages, chosen.seed)
        if n_max == 0:
            reconstruction, edited = decode(self.pipe, torch.cat([clean] * 2), self.picture.size)
            return Made(reconstruction, edited, 0, None)
        run = drive(
            self.pipe, solver, torch.cat([clean] * 2), call, techniques,
            on_evaluation=self.on_evaluation,
        )  # fmt: skip
        reconstruction, edited = decode(self.pipe, run.latents, self.picture.size)
        return Made(reconstruction, edited, run.evaluations, run.report)

    def _target_alone(self, clean: Tensor) -> Made:
        """SDEdit; with all the steps and no trace of the picture, a plain generation."""
        chosen = self.settings
        is_plain = chosen.method == "regenerate"
        strength = 1.0 if is_plain else chosen.strength
        first = min(chosen.steps - 1, round((1 - strength) * chosen.steps))
        solver = noise_and_sample(first, chosen.seed, keeps_picture=not is_plain)
        run = drive(
            self.pipe, solver, clean, self._call([self.target]), self.techniques,
            on_evaluation=self.on_evaluation,
        )  # fmt: skip
        reconstruction, edited = decode(
            self.pipe, torch.cat([clean, run.latents]), self.picture.size
        )
        return Made(reconstruction, edited, run.evaluations, run.report)

    def _call(self, prompts: list[str]) -> Call:
        chosen = self.settings
        return Call(
            prompts, self.picture.size, chosen.steps, chosen.guidance or 1.0, chosen.negative
        )

    def _watched(self, call: Call) -> Call:
        """The call, with the step callback of stock pipelines as progress."""
        tell, steps = self.on_evaluation, call.steps
        if tell is None:
            return call

        def after_step(_pipe: Any, index: int, _timestep: Any, values: Any) -> Any:
            tell(index + 1, steps)
            return values

        known = inspect.signature(self.pipe.__call__).parameters
        name = "callback_on_step_end"
        return replace(call, options={name: after_step}) if name in known else call

    def _latent_mask(self, latents: Tensor) -> Tensor:
        """The mask in the form of one item's latents: 1 in every cell that it touches."""
        assert self.white is not None  # asked for before
        factor = self.pipe.vae_scale_factor
        cells = torch.from_numpy(self.white)[None, None].float()
        cells = torch.nn.functional.max_pool2d(cells, factor)
        channels = self.pipe.vae.config.latent_channels
        return packed(self.pipe, cells.expand(1, channels, -1, -1))[0].to(latents.device)

    def _refuse_other_inversion(self, inversion: Inversion) -> None:
        steps, size = self.settings.steps, self.picture.size
        if len(inversion.noise) != 1 or inversion.steps != steps or inversion.size != size:
            raise SettingError(
                f"the inversion is of {len(inversion.noise)} pictures of {inversion.size} pixels "
                f"in {inversion.steps} steps, and the edit of one of {size} in {steps}; invert "
                "this picture with these settings"
            )


def _told(technique: Any, inversion: Inversion) -> Technique:
    """The technique, with the inversion if it can use one."""
    with_inversion = getattr(technique, "with_inversion", None)
    return technique if with_inversion is None else with_inversion(inversion)


def _usual_prompt(method: str) -> str:
    return "empty" if method == "rf-inversion" else "source"
