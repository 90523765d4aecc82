"""Faults that the core must survive: gradients that lead nowhere, and losses without an end.

The numbers are those of the project's fault list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import Move, Technique, attach
from attnctl.calls import Step
from tests.core.samples import Climb
from tests.support.pipelines import build, generate

NAN, INFINITE = float("nan"), float("inf")


def spoiled(change: Callable[[Tensor], Tensor]) -> Technique:
    class Spoiled(Climb):
        def loss(self, state: Any, step: Step) -> Tensor:
            return change(super().loss(state, step))

    return Spoiled(size=10.0, evaluations=9)


# 26
@pytest.mark.parametrize("factor", [NAN, INFINITE], ids=str)
def test_a_gradient_that_is_not_finite_stops_the_iteration_and_warns(factor: float) -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    with attach(pipe, spoiled(lambda loss: loss * factor)) as session:
        ours = generate(pipe)
        report = session.report()

    assert torch.equal(plain, ours)
    assert [entry.evaluations for entry in report.losses] == [1, 1]
    assert any("not finite" in warning for warning in report.warnings)


# 26
def test_a_gradient_of_zero_stops_the_iteration_and_warns() -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    with attach(pipe, spoiled(lambda loss: loss * 0.0)) as session:
        ours = generate(pipe)
        report = session.report()

    assert torch.equal(plain, ours)
    assert [entry.evaluations for entry in report.losses] == [1, 1]
    assert any("gradient" in warning and "zero" in warning for warning in report.warnings)


# 26
def test_an_item_whose_gradient_is_not_finite_does_not_stop_the_others() -> None:
    pipe = build("sd1")
    prompts = ["a cat and a frog", "a red dog"]
    plain = generate(pipe, prompts)
    spoil = torch.tensor([NAN, 1000.0])
    with attach(pipe, spoiled(lambda loss: loss * spoil)):
        ours = generate(pipe, prompts)

    assert torch.equal(ours[0], plain[0]) or torch.allclose(ours[0], plain[0], atol=1e-5)
    assert ours.isfinite().all()
    assert (ours[1] - plain[1]).abs().max() > 1e-4


# 27
def test_a_technique_that_never_has_enough_is_stopped_and_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("attnctl.engine.latents.MAX_EVALUATIONS", 5)

    class Endless(Climb):
        def move(self, state: Any, step: Step, evaluation: int, loss: Tensor) -> Move:
            return Move(1.0, again=True)

    pipe = build("sd1")
    with attach(pipe, Endless()) as session:
        generate(pipe, steps=1)
        report = session.report()

    assert [entry.evaluations for entry in report.losses] == [5]
    assert any("5 evaluations" in warning for warning in report.warnings)
