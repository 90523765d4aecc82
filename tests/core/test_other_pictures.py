"""Added rows with latents of their own: another picture beside the pipeline's, in one forward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Needs, Technique
from attnctl.calls import AddedRow, InputsCall, PredictionCall
from tests.core.samples import Temperature
from tests.support.pipelines import PROMPT, build, generate

STEPS = 3


def others(items: int) -> Tensor:
    return torch.randn(items, 4, 16, 16, generator=torch.Generator().manual_seed(9))


@dataclass(frozen=True)
class Beside(Technique):
    """Runs another picture beside each of the pipeline's, and keeps what is predicted for it."""

    name: ClassVar[str] = "beside"
    made: list[Tensor] = field(default_factory=list[Tensor], compare=False)
    asked: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]], compare=False)

    def needs(self) -> Needs:
        return Needs(rows=(AddedRow("other", other_picture=True),))

    def added_latents(self, call: InputsCall, kind: str) -> Tensor:
        self.asked.append((call.step.index, kind))
        return others(len(call.latents))

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        return out

    def edit_prediction(self, call: PredictionCall) -> None:
        self.made.append(call.get("cond", "other").clone())


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, "a red dog on the blue photo"]])
def test_it_is_predicted_as_in_a_forward_of_its_own(scheduler: Any, prompts: list[str]) -> None:
    pipe: Any = build("sd1")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = generate(pipe, prompts, STEPS)
    beside = Beside(made=[], asked=[])
    with attnctl.attach(pipe, beside) as session:
        steered = generate(pipe, prompts, STEPS)

    assert torch.allclose(steered, plain, atol=1e-4)
    assert beside.asked == [(index, "other") for index in range(STEPS)]
    assert not session.report().warnings
    text, _ = pipe.encode_prompt(prompts, "cpu", 1, False)
    pipe.scheduler.set_timesteps(STEPS)
    for time, made in zip(pipe.scheduler.timesteps, beside.made, strict=True):
        given = pipe.scheduler.scale_model_input(others(len(prompts)), time)
        pipe.scheduler._step_index = None
        with torch.no_grad():
            truth = pipe.unet(given, time, encoder_hidden_states=text).sample
        assert torch.allclose(made, truth, atol=1e-5)


def test_its_steps_alone_cost_a_row() -> None:
    beside = Beside(made=[], asked=[], steps=attnctl.steps(1))
    pipe = build("sd1")
    with attnctl.attach(pipe, beside):
        generate(pipe, PROMPT, STEPS)
    assert beside.asked == [(1, "other")]


def test_another_technique_that_picks_rows_does_not_see_it() -> None:
    @dataclass(frozen=True)
    class Grey(Technique):
        """Attends to nothing, in all rows that it may pick."""

        name: ClassVar[str] = "grey"

        def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
            return out.index_fill(0, call.pick(), 0.0)

    alone, beside = Beside(made=[], asked=[]), Beside(made=[], asked=[])
    pipe: Any = build("sd1")
    for techniques in ([alone], [beside, Grey()]):
        with attnctl.attach(pipe, techniques):
            generate(pipe, PROMPT, STEPS)
    for made, truth in zip(beside.made, alone.made, strict=True):
        assert torch.allclose(made, truth, atol=1e-5)


def test_one_that_edits_the_whole_batch_edits_it_too() -> None:
    """Kernels and temperatures hold for a layer, whatever its rows show."""
    made: list[Tensor] = []
    for techniques in ([], [Temperature()]):
        beside = Beside(made=[], asked=[])
        pipe = build("sd1")
        with attnctl.attach(pipe, [beside, *techniques]):
            generate(pipe, PROMPT, 1)
        made += beside.made
    assert not torch.allclose(*made, atol=1e-4)
