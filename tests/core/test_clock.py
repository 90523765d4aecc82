"""The scheduler is the clock: step indices, totals and stages for every kind of solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from attnctl import attach, between
from attnctl.engine.clock import Clock, is_shadowed
from tests.core.samples import Climb, Shift, Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate, picture
from tests.support.pipelines.parts import ddim

# Name of the scheduler: settings. Each is a solver with one evaluation a step.
FIRST_ORDER: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {},
    "DDPMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "DEISMultistepScheduler": {},
    "SASolverScheduler": {},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {},
    "EDMEulerScheduler": {},
    "EDMDPMSolverMultistepScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
    "FlowMatchLCMScheduler": {},
}
TWO_STAGES: dict[str, dict[str, Any]] = {
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "FlowMatchHeunDiscreteScheduler": {},
}
NOISE = ("FlowMatch", "EDM")


def scheduler_named(name: str, **settings: Any) -> Any:
    """A scheduler with Stable Diffusion's noise, or its own if it has another kind."""
    cls = getattr(diffusers, name)
    if name.startswith(NOISE):
        return cls(**settings)
    given = {key: value for key, value in ddim().config.items() if not key.startswith("_")}
    return cls.from_config({**given, **settings})


def loop(
    scheduler: Any, steps: int, nudge: Callable[[Any, Tensor], Tensor] = lambda step, sample: sample
) -> tuple[list[Any], Tensor]:
    """Run a scheduler with predictions that do not look at the latents.

    Returns:
        For each evaluation its step, whether the solver step is complete after it, and whether it
        is the last one; and the final latents.
    """
    clock = Clock(scheduler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    sample = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    seen = []
    for timestep in scheduler.timesteps:
        step = clock.on_denoiser_call(timestep)
        sample = nudge(step, sample)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        torch.manual_seed(len(seen))
        prediction = torch.randn(sample.shape)
        options = {} if "generator" not in step_names(scheduler) else {"generator": generator}
        sample = scheduler.step(prediction, timestep, sample, **options).prev_sample
        clock.close()
        seen.append((step, clock.is_solver_step_complete, clock.is_last))
    return seen, sample


def step_names(scheduler: Any) -> tuple[str, ...]:
    code = type(scheduler).step.__code__
    return code.co_varnames[: code.co_argcount]


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # LMS and NumPy 2
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_solver_of_one_evaluation_counts_each_of_them(name: str, steps: int) -> None:
    seen, _ = loop(scheduler_named(name, **FIRST_ORDER[name]), steps)

    assert [step.index for step, _, _ in seen] == list(range(steps))
    assert {(step.total, step.stage) for step, _, _ in seen} == {(steps, 0)}
    assert [is_last for _, _, is_last in seen] == [False] * (steps - 1) + [True]
    assert all(complete for _, complete, _ in seen)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("name", TWO_STAGES)
def test_both_evaluations_of_a_two_stage_solver_share_an_index(name: str, steps: int) -> None:
    seen, _ = loop(scheduler_named(name), steps)
    expected = [(index, stage) for index in range(steps) for stage in (0, 1)][:-1]

    assert [(step.index, step.stage) for step, _, _ in seen] == expected
    assert [step.iteration for step, _, _ in seen] == list(range(2 * steps - 1))
    assert {step.total for step, _, _ in seen} == {steps}
    complete = [stage == 1 for _, stage in expected[:-1]] + [True]
    assert [c for _, c, _ in seen] == complete
    assert seen[-1][2]


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_pndm_evaluates_its_first_step_twice(steps: int) -> None:
    seen, _ = loop(scheduler_named("PNDMScheduler", skip_prk_steps=True), steps)

    assert [step.stage for step, _, _ in seen] == [0, 1, *[0] * (steps - 1)]
    assert [step.index for step, _, _ in seen] == [0, 0, *range(1, steps)]
    assert {step.total for step, _, _ in seen} == {steps}


def test_pndm_counts_the_evaluations_of_its_runge_kutta_steps_as_one_step() -> None:
    seen, _ = loop(scheduler_named("PNDMScheduler", skip_prk_steps=False), 6)
    indices = [step.index for step, _, _ in seen]

    assert [step.stage for step, _, _ in seen][:8] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert indices == sorted(indices)
    assert indices[-1] + 1 == seen[0][0].total


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in TWO_STAGES),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("PNDMScheduler", {"skip_prk_steps": False}),
    ],
)
def test_a_constant_move_of_the_latents_counts_in_the_first_stage_alone(
    name: str, settings: dict[str, Any]
) -> None:
    _, plain = loop(scheduler_named(name, **settings), 5)
    moved = {}
    for stage in (0, 1):
        _, moved[stage] = loop(
            scheduler_named(name, **settings),
            5,
            lambda step, sample, s=stage: sample + 0.1 * (step.stage == s and step.index == 0),
        )

    assert torch.allclose(moved[1], plain, atol=1e-5)
    assert (moved[0] - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler"]
)
def test_a_pipelines_latents_move_once_a_step_and_in_its_first_stage(name: str) -> None:
    pipe = build("sd1")
    pipe.scheduler = scheduler_named(name, skip_prk_steps=True)
    plain = generate(pipe, steps=3)
    with attach(pipe, Climb(size=100.0)) as session:
        moved = generate(pipe, steps=3)
        losses = session.report().losses

    assert [entry.step for entry in losses] == [0, 1, 2]
    assert {entry.evaluations for entry in losses} == {1}
    assert (moved - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"]
)
def test_after_step_is_called_once_for_each_complete_step(name: str) -> None:
    pipe = build("sd1")
    pipe.scheduler = scheduler_named(name, skip_prk_steps=True)
    plain = generate(pipe, steps=4)
    shift = Shift(steps=between(3, 4))
    with attach(pipe, shift):
        shifted = generate(pipe, steps=4)

    assert [step.index for step in shift.steps_seen] == [3]
    assert torch.allclose(shifted, plain + 0.1, atol=1e-5)


def test_latents_after_a_step_are_what_the_next_step_starts_from() -> None:
    pipe = build("sd1")
    shift, callback_saw = Shift(), []

    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        callback_saw.append(values["latents"].clone())
        return values

    plain = generate(pipe, steps=1)
    with attach(pipe, shift):
        shifted = generate(pipe, steps=3, callback_on_step_end=callback)

    assert [step.index for step in shift.steps_seen] == [0, 1, 2]
    assert torch.equal(callback_saw[-1], shifted)
    with attach(pipe, Shift()):
        assert torch.allclose(generate(pipe, steps=1), plain + 0.1)


@pytest.mark.parametrize(("strength", "ran"), [(1.0, 10), (0.5, 5), (0.3, 3)])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_steps_of_image_to_image_are_those_that_it_really_does(
    scheduler: str, strength: float, ran: int
) -> None:
    pipe = build("sd1_img2img")
    pipe.scheduler = scheduler_named(scheduler)
    watch = Watch(where="mid")
    with attach(pipe, watch) as session:
        generate(pipe, steps=10, image=picture(), strength=strength)
        report = session.report()

    assert report.total == ran
    assert report.active_steps("watch") == tuple(range(ran))


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "PNDMScheduler"])
def test_image_to_image_with_a_two_stage_solver_counts_solver_steps(scheduler: str) -> None:
    pipe = build("sd1_img2img")
    pipe.scheduler = scheduler_named(scheduler, skip_prk_steps=True)
    watch = Watch(where="mid:self")
    with attach(pipe, watch) as session:
        generate(pipe, steps=10, image=picture(), strength=0.5)
        total = session.report().total

    indices = sorted({call.step.index for call in watch.seen})
    assert indices == list(range(len(indices)))
    assert total == len(indices)


@pytest.mark.parametrize(
    "name", ["sdxl", "sd3", "flux", "pixart_alpha", "cogvideox", "wan", "wan22", "lumina2", "dit"]
)
def test_a_pipeline_of_any_family_counts_its_steps(name: str) -> None:
    pipe = build(name)
    watch = Watch(where="index=0")
    with attach(pipe, watch) as session:
        generate(pipe, steps=3)
        total = session.report().total

    assert total == 3
    assert sorted({call.step.index for call in watch.seen}) == [0, 1, 2]


def test_the_cogvideox_solver_with_its_own_order_of_arguments_works() -> None:
    pipe = build("cogvideox")
    pipe.scheduler = diffusers.CogVideoXDPMScheduler()
    plain = generate(pipe, steps=3)
    shift = Shift(steps="2-")
    with attach(pipe, shift):
        shifted = generate(pipe, steps=3)

    assert [step.index for step in shift.steps_seen] == [2]
    assert torch.allclose(shifted, plain + 0.1, atol=1e-5)


def test_steps_know_their_timestep_and_fraction() -> None:
    pipe = build("sd1")
    watch = Watch(where="mid:self")
    with attach(pipe, watch):
        generate(pipe, steps=4)

    assert [call.step.timestep for call in watch.seen] == [
        float(t) for t in pipe.scheduler.timesteps
    ]
    assert [call.step.fraction for call in watch.seen] == [0.0, 0.25, 0.5, 0.75]


def test_the_watch_on_a_scheduler_is_taken_off_again() -> None:
    pipe = build("sd1")
    before = fingerprint(pipe)
    with attach(pipe, Shift()):
        assert is_shadowed(pipe.scheduler)
        assert not is_shadowed(type(pipe.scheduler).from_config(pipe.scheduler.config))

    assert not is_shadowed(pipe.scheduler)
    assert differences(before, fingerprint(pipe)) == []
