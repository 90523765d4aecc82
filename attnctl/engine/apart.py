"""Forwards in parts: some items of a batch at a time, for less memory."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from attnctl.calls import Row
from attnctl.engine.control import control_of
from attnctl.engine.denoiser import DenoiserDriver
from attnctl.engine.outputs import joined_parts
from attnctl.engine.rows import take_rows
from attnctl.errors import CompiledModelError, UnsupportedModelError
from attnctl.sites import is_compiled
from attnctl.technique import Technique


@contextmanager
def items_apart(pipe: Any, groups: Sequence[Sequence[int]]) -> Generator[None]:
    """Let the pipeline's denoisers run one group of items after the other inside this block.

    The pipeline, and techniques outside of attention, still see one call with all rows. Attach
    techniques before; those that read other items need them in the same group.

    Args:
        pipe: A pipeline whose batches hold all these items in each branch.
        groups: Numbers of items; each item stands in one group.

    Raises:
        UnsupportedModelError: an attached technique adds rows, has a loss or acts on blocks.
        CompiledModelError: a denoiser is compiled.
    """
    control = control_of(pipe, "auto", None)
    _refuse(control.runs.planner.techniques)
    with ExitStack() as stack:
        for driver in control.runs.drivers.values():
            if is_compiled(driver.model):
                raise CompiledModelError(
                    f"{driver.name} is compiled, so its batch cannot be divided; run all pairs at "
                    "once, or do not compile it"
                )
            own = driver.model.__dict__
            before = own.get("forward")
            stack.callback(partial(_put_back, own, before))
            original = driver.model.forward
            own["forward"] = partial(_forward, driver, original, tuple(map(frozenset, groups)))
        yield


def _put_back(own: dict[str, Any], before: Any) -> None:
    if before is None:
        own.pop("forward", None)
    else:
        own["forward"] = before


def _forward(
    driver: DenoiserDriver,
    original: Callable[..., Any],
    groups: tuple[frozenset[int], ...],
    *args: Any,
    **kwargs: Any,
) -> Any:
    inputs = driver.arguments.bind(args, kwargs)
    whole = driver.pass_
    count = len(inputs[driver.arguments.latents_name(inputs)])
    rows = whole.rows
    if len(rows) != count:  # nothing is active
        items = sum(map(len, groups))
        rows = tuple(Row("cond", row % items) for row in range(count))
    parts: list[tuple[list[int], Any]] = []
    for group in groups:
        chosen = [place for place, row in enumerate(rows) if row.item in group]
        driver.pass_ = replace(whole, rows=tuple(rows[place] for place in chosen))
        try:
            output = original(**take_rows(inputs, driver.family.batched, count, chosen))
        finally:
            driver.pass_ = whole
        parts.append((chosen, output))
    return joined_parts(parts, count)


def _refuse(techniques: Sequence[Technique]) -> None:
    for technique in techniques:
        acts = {
            "adds rows": bool(technique.needs().rows),
            "has a loss": technique.overrides("loss"),
            "acts on blocks": technique.overrides("module_hooks"),
        }
        found = [text for text, is_so in acts.items() if is_so]
        if found:
            raise UnsupportedModelError(
                f"{technique.name} {found[0]}, for which all items must run together; run all "
                "pairs at once, or drop it"
            )
