"""Drop-in processors, for ``model.set_attn_processor``, without a session."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attnctl.calls import Layout, Pass, Row, Step
from attnctl.engine.chain import ProcessorCall, tap
from attnctl.engine.links import SiteExecution
from attnctl.engine.planner import Planner
from attnctl.engine.site_plans import SitePlan
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.families import Family, find_family
from attnctl.report import Report
from attnctl.schedule import Schedule
from attnctl.settings import grid_or_none
from attnctl.sites import Site, attention_modules, find_sites, model_config
from attnctl.technique import Technique


def attn_processors(
    model: nn.Module,
    techniques: Technique | Sequence[Technique],
    latents: int | tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Make processors that hold techniques: ``model.set_attn_processor(attn_processors(...))``.

    Without a session there is no clock, no rows and no prediction phase, so only techniques are
    taken that override attention methods alone, add no rows and have no window. Put the model's
    own processors back by keeping ``model.attn_processors`` from before.

    Args:
        model: A denoiser of diffusers.
        techniques: In the order of the chain.
        latents: Height and width of the latents, for techniques that must know how image tokens
            lie: a processor sees only how many there are. ``None``: the size that the model was
            made for.

    Returns:
        A processor for every attention module, by diffusers' name (``"<path>.processor"``).

    Raises:
        UnsupportedModelError: a technique needs more than attention, or a token layout that the
            size of the latents does not tell.
        SettingError: the size of the latents is none, or unknown.
        NoSiteError: a selector matches nothing.
    """
    chosen = (techniques,) if isinstance(techniques, Technique) else tuple(techniques)
    for technique in chosen:
        _check(technique)
    family = find_family(model)
    planner = Planner(
        chosen, {"denoiser": find_sites("denoiser", model, family)}, {"denoiser": family}
    )
    grids = _Grids(model, family, latents) if any(t.needs().layout for t in chosen) else None
    if grids is not None:
        sites = planner.selected
        planner.complete(None, {(s.denoiser, s.path): grids.expected(s) for s in sites})
    gate = _StaticGate(planner, grids)
    return {
        f"{path}.processor": tap(gate, path, module.processor)
        if path in gate.active
        else module.processor
        for path, module in attention_modules(model)
    }


def _check(technique: Technique) -> None:
    needs = technique.needs()
    methods = ("loss", "edit_inputs", "edit_prediction", "after_step", "begin", "read")
    methods += ("module_hooks",)
    used = [method for method in methods if technique.overrides(method)]
    reason = (
        f"uses {', '.join(used)}"
        if used
        else "adds rows"
        if needs.rows
        else "has a prompt of its own"
        if needs.other_prompt
        else f"has a window (steps={technique.steps})"
        if technique.steps != Schedule.always()
        else ""
    )
    if reason:
        raise UnsupportedModelError(
            f"{technique.name} {reason}, which processors alone cannot serve; use "
            "attnctl.attach(pipe, ...) instead"
        )


class _Grids:
    """How tokens lie, told by the size of the latents and what a processor is given."""

    def __init__(
        self, model: nn.Module, family: Family, latents: int | tuple[int, int] | None
    ) -> None:
        self._config, self._family = model_config(model), family
        given = self._config.get("sample_size") if latents is None else latents
        size = grid_or_none("attn_processors", "latents", given)
        if size is None:
            raise SettingError(
                f"{type(model).__name__} does not say for which size of latents it was made; give "
                "attn_processors(..., latents=(height, width))"
            )
        self.size = size

    def expected(self, site: Site) -> Layout:
        """The layout of a site, as long as its text is not known."""
        layout = self._layout(site, {"encoder_hidden_states": torch.empty(1, 0, 0, device="meta")})
        if layout is None:
            raise UnsupportedModelError(
                f"the size of the latents does not tell how the tokens of {site.path} lie in a "
                f"model of the family {self._family.name!r}; use attnctl.attach(pipe, ...) instead"
            )
        return layout

    def at_call(self, site: Site, given: ProcessorCall, hidden: Tensor | None) -> Layout:
        """The layout of a site in this call."""
        layout = self._layout(site, given.arguments()) or self.expected(site)
        tokens = layout.image.stop - layout.image.start
        found = 0 if hidden is None else hidden.shape[1]
        if found != tokens:
            raise SettingError(
                f"{site.path} was given {found} tokens; latents of {self.size[0]}x{self.size[1]} "
                f"have {tokens} there. Make the processors for the size of these latents: "
                "attn_processors(..., latents=(height, width))"
            )
        return layout

    def _layout(self, site: Site, arguments: Mapping[str, Any]) -> Layout | None:
        picture = torch.empty(1, 1, *self.size, device="meta")
        try:
            inputs = {**arguments, self._family.latents: picture}
            return self._family.layout(site, inputs, self._config)
        except (KeyError, ValueError):  # it takes more than that, such as frames or positions
            return None


class _StaticGate:
    """A gate that is always open: every call is its own step, every row is conditional."""

    name, kernel, cache = "denoiser", "auto", None

    def __init__(self, planner: Planner, grids: _Grids | None) -> None:
        self._grids = grids
        self.active: dict[str, SitePlan] = planner.plans("denoiser", 0, None, Pass("main", 0, ()))
        self.family = planner.families["denoiser"]
        self.report = Report()
        self.keys_of: dict[str, Any] = {}
        self.step, self.pass_ = Step(0, None), Pass("main", 0, ())

    def control(self, path: str, given: ProcessorCall) -> SiteExecution:
        """The handler of one call."""
        hidden = given.hidden
        rows = 1 if hidden is None else hidden.shape[0]
        self.pass_ = Pass("main", 0, tuple(Row("cond", i) for i in range(rows)))
        plan = self.active[path]
        if self._grids is not None:
            plan = replace(plan, layout=self._grids.at_call(plan.site, given, hidden))
        return SiteExecution(self, plan, given)  # pyright: ignore[reportArgumentType]

    def state_of(self, technique: Technique) -> None:
        """There is no run, so nothing is kept."""

    def on_site_done(self, path: str) -> None:
        """Nothing waits for a site."""
