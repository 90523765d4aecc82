"""How tokens lie at the sites of a run, and of each of the calls of its steps."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attnctl.engine.planner import Planner
from attnctl.engine.roles import Layout
from attnctl.engine.run import Run
from attnctl.sites import model_config

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver

Layouts = dict[tuple[str, str], Layout | None]


def layouts_of(
    planner: Planner, drivers: "Iterable[DenoiserDriver]", inputs: Mapping[str, Any]
) -> Layouts:
    """Layout of each selected site of these denoisers, if any technique asks for layouts."""
    if not any(t.needs().layout or t.where.needs_grid for t in planner.techniques):
        return {}
    named = {driver.name: driver for driver in drivers}
    found: Layouts = {}
    for site in planner.selected:
        if site.denoiser in named:
            driver = named[site.denoiser]
            layout = driver.family.layout(site, inputs, model_config(driver.model))
            found[(site.denoiser, site.path)] = layout
    return found


def use_layouts_of_call(
    planner: Planner, run: Run, driver: "DenoiserDriver", inputs: Mapping[str, Any]
) -> None:
    """Plan with the layouts of a call: the texts of guidance branches differ in their lengths.

    They are found once for each of the calls of a step.
    """
    if not run.layouts:
        return
    key = (driver.name, run.clock.calls)
    if key not in run.layouts_of_calls:
        own = run.layouts if run.is_first_call else layouts_of(planner, [driver], inputs)
        run.layouts_of_calls[key] = {**run.layouts, **own}
    run.is_first_call = False
    planner.layouts = run.layouts_of_calls[key]
