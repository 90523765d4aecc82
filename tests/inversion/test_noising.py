"""A given picture at every noise level, as the scheduler itself would add the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl.errors import FeatureError, SettingError, UnsupportedModelError
from attnctl.inversion import encode, noised_trajectory, sampler_of
from tests.support.pipelines import build, picture


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma"])
def test_every_level_is_what_the_scheduler_adds(name: str) -> None:
    pipe: Any = build(name)
    made = noised_trajectory(pipe, picture(), steps=5, seed=3)
    sampler = sampler_of(pipe)
    sampler.set_timesteps(5)
    clean = encode(pipe, [picture()])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    for timestep in sampler.timesteps:
        truth = sampler.add_noise(clean, noise, timestep[None])
        assert torch.allclose(made.at(float(timestep)), truth, atol=1e-5)
    assert torch.equal(made.clean, clean)
    assert made.scheduler == type(sampler).__name__


def test_flow_models_mix_noise_and_latents() -> None:
    pipe: Any = build("sd3")
    clean = torch.randn(2, 4, 8, 8)
    made = noised_trajectory(pipe, clean, steps=4)
    sampler = sampler_of(pipe)
    sampler.set_timesteps(4)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for place, sigma in enumerate(sampler.sigmas[:-1]):
        assert torch.allclose(made.latents[place], (1 - sigma) * clean + sigma * noise, atol=1e-5)


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_a_right_prediction_points_to_the_given_latents(name: str) -> None:
    clean = torch.randn(1, 4, 8, 8)
    made = noised_trajectory(build(name), clean, steps=4)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    right = noise - clean if name == "sd3" else noise
    for timestep in made.timesteps:
        found = made.estimate(timestep, made.at(timestep), right)
        assert torch.allclose(found, clean, atol=1e-3)
    with pytest.raises(FeatureError, match=r"no latents at timestep 0\.5"):
        made.estimate(0.5, clean, right)


def test_what_cannot_be_noised_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="packs its latents"):
        noised_trajectory(build("flux"), picture())
    with pytest.raises(SettingError, match="whole number from 1"):
        noised_trajectory(build("sd1"), picture(), steps=0)
