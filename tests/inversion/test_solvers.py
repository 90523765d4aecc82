"""Solvers against closed forms, plain loops and diffusers' own inverse scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from attnctl.inversion.driven import Solver
from attnctl.inversion.levels import Ladder
from attnctl.inversion.solvers import (
    controlled_up,
    euler_down,
    euler_up,
    fireflow,
    flow_edit,
    midpoint,
    noise_and_sample,
)
from tests.inversion.toys import (
    ddim,
    diffusion_ladder,
    flow_ladder,
    network,
    random,
    solved,
)

CLEAN = random(1, 2, 6)
NOISE = random(2, 2, 6)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize(
    ("up", "down"),
    [
        (euler_up("noisier"), euler_down()),
        (euler_up("own"), euler_down()),
        (euler_up(refinements=2), euler_down()),
        (midpoint(up=True), midpoint(up=False)),
        (fireflow(up=True), fireflow(up=False)),
        (controlled_up(NOISE, 0.0, consistent=True), euler_down()),
    ],
)
def test_a_constant_velocity_is_inverted_exactly_whatever_the_steps(
    up: Solver, down: Solver, steps: int
) -> None:
    ladder = flow_ladder(steps)

    def straight(latents: Tensor, timestep: float) -> Tensor:
        return NOISE - CLEAN

    noise, _, _ = solved(up, CLEAN, ladder, straight)
    back, _, _ = solved(down, noise, ladder, straight)

    assert torch.allclose(noise, NOISE, atol=1e-6)
    assert torch.allclose(back, CLEAN, atol=1e-12)


@pytest.mark.parametrize("ladder", [flow_ladder(), diffusion_ladder()])
def test_kept_latents_are_those_of_every_level_from_clean_to_noise(ladder: Ladder) -> None:
    for up in (euler_up(refinements=1), midpoint(up=True), fireflow(up=True)):
        noise, _, kept = solved(up, CLEAN, ladder, network())
        assert [level for level, _ in kept] == list(ladder.levels[-2::-1])
        assert torch.equal(kept[-1][1], noise)


def test_no_pull_is_euler_inversion_and_a_full_one_ends_at_the_given_noise() -> None:
    ladder, model = flow_ladder(), network()
    plain, _, _ = solved(euler_up("own"), CLEAN, ladder, model)
    free, _, _ = solved(controlled_up(NOISE, 0.0, consistent=True), CLEAN, ladder, model)
    pulled, _, _ = solved(controlled_up(NOISE, 1.0, consistent=True), CLEAN, ladder, model)
    faithful, _, kept = solved(controlled_up(NOISE, 1.0, consistent=False), CLEAN, ladder, model)

    assert torch.equal(free, plain)
    assert torch.allclose(pulled, NOISE, atol=1e-6)
    assert (faithful - NOISE).abs().max() > 1e-2
    assert kept == []  # its steps do not meet the sampler's levels


def test_the_faithful_mode_is_the_community_pipelines_loop() -> None:
    ladder, model, gamma = flow_ladder(5), network(), 0.5
    sigmas = [level.sigma for level in ladder.levels]
    expected = CLEAN
    for i in range(5):
        time = i / 5
        velocity = model(expected, 1000 * time)
        towards = (NOISE - expected) / (1 - time)
        expected = expected + (velocity + gamma * (towards - velocity)) * (
            sigmas[i] - sigmas[i + 1]
        )
    got, _, _ = solved(controlled_up(NOISE, gamma, consistent=False), CLEAN, ladder, model)

    assert torch.allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("ladder", [flow_ladder(), diffusion_ladder()])
def test_each_refinement_brings_the_round_trip_nearer(ladder: Ladder) -> None:
    model = network()
    errors: list[float] = []
    for refinements in (0, 1, 2, 4, 30):
        noise, _, _ = solved(euler_up(refinements=refinements), CLEAN, ladder, model)
        back, _, _ = solved(euler_down(), noise, ladder, model)
        errors.append(float((back - CLEAN).abs().max()))

    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12 < errors[0]


def test_the_residual_of_one_fixed_point_falls_with_every_iteration() -> None:
    ladder, model = flow_ladder(1), network()
    here, there = ladder.levels[1], ladder.levels[0]
    residuals: list[float] = []
    for refinements in range(6):
        noise, _, _ = solved(euler_up(refinements=refinements), CLEAN, ladder, model)
        target = ladder.moved(CLEAN, model(noise, there.timestep), here, there)
        residuals.append(float((noise - target).abs().max()))

    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < 0.05 * residuals[0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_inversion_is_diffusers_inverse_scheduler(prediction: str) -> None:
    steps, model = 10, network()
    sampler = ddim(prediction_type=prediction)
    sampler.set_timesteps(steps)
    inverse = DDIMInverseScheduler.from_config(sampler.config)
    inverse.set_timesteps(steps)
    # The inverse scheduler rounds differently where steps do not divide the training steps.
    assert inverse.timesteps.tolist() == sampler.timesteps.flip(0).tolist()
    expected = CLEAN
    for t in inverse.timesteps:
        found = model(expected, float(t))
        expected = inverse.step(found, int(t), expected, return_dict=False)[0]
    got, evaluations, _ = solved(euler_up("noisier"), CLEAN, Ladder.of(sampler), model)

    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)  # its tables are fp32
    assert evaluations == steps


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_going_down_is_the_ddim_sampler(prediction: str) -> None:
    sampler, model = ddim(prediction_type=prediction), network()
    sampler.set_timesteps(10)
    expected = NOISE
    for t in sampler.timesteps:
        expected = sampler.step(model(expected, float(t)), t, expected).prev_sample
    got, _, _ = solved(euler_down(), NOISE, Ladder.of(sampler), model)

    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_middle_step_is_rf_solvers_second_order_form() -> None:
    ladder, model = flow_ladder(6), network()
    expected = CLEAN
    for here, there in zip(ladder.levels[::-1], ladder.levels[-2::-1], strict=False):
        size = there.sigma - here.sigma
        first = model(expected, here.timestep)
        ahead = model(expected + size / 2 * first, (here.timestep + there.timestep) / 2)
        slope = (ahead - first) / (size / 2)
        expected = expected + size * first + size**2 / 2 * slope
    got, _, _ = solved(midpoint(up=True), CLEAN, ladder, model)

    assert torch.allclose(got, expected, atol=1e-12)


def test_fireflow_uses_the_last_middle_velocity_again() -> None:
    ladder, model = flow_ladder(6), network()
    expected, velocity = CLEAN, None
    for here, there in zip(ladder.levels[::-1], ladder.levels[-2::-1], strict=False):
        size = there.sigma - here.sigma
        velocity = model(expected, here.timestep) if velocity is None else velocity
        middle = (here.timestep + there.timestep) / 2
        velocity = model(expected + size / 2 * velocity, middle)
        expected = expected + size * velocity
    got, _, _ = solved(fireflow(up=True), CLEAN, ladder, model)

    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("ladder", [flow_ladder(10), diffusion_ladder(10)])
def test_second_order_comes_back_nearer_than_first(ladder: Ladder) -> None:
    model = network(gain=0.8)
    errors: dict[str, float] = {}
    for name, up, down in (
        ("euler", euler_up(), euler_down()),
        ("middle", midpoint(up=True), midpoint(up=False)),
        ("fireflow", fireflow(up=True), fireflow(up=False)),
    ):
        noise, _, _ = solved(up, CLEAN, ladder, model)
        back, _, _ = solved(down, noise, ladder, model)
        errors[name] = float((back - CLEAN).norm())

    assert errors["middle"] < errors["euler"] / 5
    assert errors["fireflow"] < errors["euler"] / 5


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (euler_up(), 8),
        (euler_up(refinements=3), 32),
        (midpoint(up=True), 16),
        (midpoint(up=False), 16),
        (fireflow(up=True), 9),
        (fireflow(up=False), 9),
        (controlled_up(NOISE, 0.5, consistent=True), 8),
        (controlled_up(NOISE, 0.5, consistent=False), 8),
        (flow_edit(5, 0, 1, 0), 5),
        (flow_edit(5, 2, 3, 0), 3 * 3 + 2),
        (noise_and_sample(3, 0), 5),
    ],
)
def test_evaluations_are_counted_as_the_papers_count_them(solver: Solver, expected: int) -> None:
    _, evaluations, _ = solved(solver, CLEAN, flow_ladder(8), network())

    assert evaluations == expected


# --- FlowEdit and SDEdit -----------------------------------------------------------------------


def two_prompts(difference: float) -> object:
    """A model whose second row has another prompt, unless the difference is 0."""
    model = network()

    def predict(latents: Tensor, timestep: float) -> Tensor:
        found = model(latents, timestep)
        return found + difference * torch.tensor([[0.0], [1.0]]) * found.cos()

    return predict


@pytest.mark.parametrize("ladder", [flow_ladder(), diffusion_ladder()])
def test_flow_edit_with_equal_prompts_returns_the_source_bit_for_bit(ladder: Ladder) -> None:
    start = CLEAN[:1].repeat(2, 1)
    got, _, _ = solved(flow_edit(6, 0, 2, 0), start, ladder, two_prompts(0.0))

    assert torch.equal(got, start)


@pytest.mark.parametrize("ladder", [flow_ladder(), diffusion_ladder()])
def test_flow_edits_seed_counts_only_where_prompts_differ(ladder: Ladder) -> None:
    start = CLEAN[:1].repeat(2, 1)
    edits = {
        (seed, difference): solved(flow_edit(6, 0, 1, seed), start, ladder, two_prompts(difference))
        for seed in (0, 1)
        for difference in (0.0, 0.5)
    }

    assert torch.equal(edits[0, 0.0][0], edits[1, 0.0][0])
    assert not torch.equal(edits[0, 0.5][0][1], edits[1, 0.5][0][1])
    assert torch.equal(edits[0, 0.5][0][0], start[0])


def test_flow_edit_without_steps_returns_the_source() -> None:
    start = CLEAN[:1].repeat(2, 1)
    got, evaluations, _ = solved(flow_edit(0, 0, 1, 0), start, flow_ladder(), two_prompts(0.5))

    assert torch.equal(got, start)
    assert evaluations == 0


@pytest.mark.parametrize("n_min", [0, 2])
def test_flow_edit_is_the_papers_loop(n_min: int) -> None:
    ladder, model = flow_ladder(6), two_prompts(0.5)
    sigmas = [level.sigma for level in ladder.levels]
    generator = torch.Generator().manual_seed(3)
    source, edit, sampled = CLEAN[:1], CLEAN[:1].clone(), None
    for i in range(6):
        left = 6 - i
        if left > 4:
            continue
        noise = torch.randn(source.shape, generator=generator).double()
        at_source = (1 - sigmas[i]) * source + sigmas[i] * noise
        timestep = ladder.levels[i].timestep
        if left > n_min:
            found = model(torch.cat([at_source, edit + at_source - source]), timestep)
            edit = edit + (sigmas[i + 1] - sigmas[i]) * (found[1:] - found[:1])
            continue
        if sampled is None:
            sampled = edit + at_source - source
            torch.randn(source.shape, generator=generator)  # drawn for the source row
        found = model(torch.cat([at_source, sampled]), timestep)
        sampled = sampled + (sigmas[i + 1] - sigmas[i]) * found[1:]
    start = source.repeat(2, 1)
    got, _, _ = solved(flow_edit(4, n_min, 1, 3), start, ladder, model)

    assert torch.allclose(got[1:], edit if sampled is None else sampled, atol=1e-6)


@pytest.mark.parametrize("ladder", [flow_ladder(), diffusion_ladder()])
def test_sdedit_starts_from_the_picture_at_its_level_and_generation_from_noise(
    ladder: Ladder,
) -> None:
    noise = torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(5)).double()
    level = ladder.levels[3]
    expected, _, _ = solved(
        euler_down(3), level.alpha * CLEAN + level.sigma * noise, ladder, network()
    )
    got, _, _ = solved(noise_and_sample(3, 5), CLEAN, ladder, network())
    plain, _, _ = solved(noise_and_sample(0, 5, keeps_picture=False), CLEAN, ladder, network())
    of_noise, _, _ = solved(euler_down(), noise, ladder, network())

    assert torch.allclose(got, expected)
    assert torch.allclose(plain, of_noise)


def test_a_level_between_two_has_the_timestep_of_its_noise() -> None:
    sampler = ddim()
    sampler.set_timesteps(10)
    ladder = Ladder.of(sampler)
    for here, there in zip(ladder.levels, ladder.levels[1:], strict=False):
        middle = ladder.between(here, there)
        assert there.timestep <= middle.timestep <= here.timestep
        assert middle.alpha**2 + middle.sigma**2 == pytest.approx(1)
        low, high = int(middle.timestep), int(middle.timestep) + 1
        around = sampler.alphas_cumprod[low], sampler.alphas_cumprod[high]
        assert around[1] <= middle.alpha**2 + 1e-9
        assert middle.alpha**2 <= around[0] + 1e-9
