"""Drop-in processors, for ``model.set_attn_processor``, without a session."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from attnctl.calls import Pass, Row, Step
from attnctl.chain import ProcessorCall, tap
from attnctl.errors import UnsupportedModelError
from attnctl.families import find_family
from attnctl.links import SiteExecution
from attnctl.planner import Planner
from attnctl.report import Report
from attnctl.schedule import Schedule
from attnctl.site_plans import SitePlan
from attnctl.sites import attention_modules, find_sites
from attnctl.technique import Technique


def attn_processors(
    model: nn.Module, techniques: Technique | Sequence[Technique]
) -> dict[str, Any]:
    """Make processors that hold techniques: ``model.set_attn_processor(attn_processors(...))``.

    Without a session there is no clock, no rows and no prediction phase, so only techniques are
    taken that override attention methods alone, add no rows and have no window. Put the model's
    own processors back by keeping ``model.attn_processors`` from before.

    Args:
        model: A denoiser of diffusers.
        techniques: In the order of the chain.

    Returns:
        A processor for every attention module, by diffusers' name (``"<path>.processor"``).

    Raises:
        UnsupportedModelError: a technique needs more than attention, or a known token layout.
        NoSiteError: a selector matches nothing.
    """
    chosen = (techniques,) if isinstance(techniques, Technique) else tuple(techniques)
    for technique in chosen:
        _check(technique)
    family = find_family(model)
    planner = Planner(
        chosen, {"denoiser": find_sites("denoiser", model, family)}, {"denoiser": family}
    )
    gate = _StaticGate(planner, chosen)
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
        else "needs the token layout"
        if needs.layout
        else f"has a window (steps={technique.steps})"
        if technique.steps != Schedule.always()
        else ""
    )
    if reason:
        raise UnsupportedModelError(
            f"{technique.name} {reason}, which processors alone cannot serve; use "
            "attnctl.attach(pipe, ...) instead"
        )


class _StaticGate:
    """A gate that is always open: every call is its own step, every row is conditional."""

    name, kernel, cache = "denoiser", "auto", None

    def __init__(self, planner: Planner, techniques: Sequence[Technique]) -> None:
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
        return SiteExecution(self, self.active[path], given)  # pyright: ignore[reportArgumentType]

    def state_of(self, technique: Technique) -> None:
        """There is no run, so nothing is kept."""

    def on_site_done(self, path: str) -> None:
        """Nothing waits for a site."""
