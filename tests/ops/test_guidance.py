"""Guidance formulas against diffusers' own, and what must hold of them."""

from __future__ import annotations

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from attnctl.ops.guidance import (
    classifier_free,
    image_guidance,
    optimal_scale,
    project_difference,
    rescale_deviation,
    solve_uncond,
)

SHAPES = ((2, 4, 6, 5), (3, 12, 16), (2, 4, 3, 4, 4))  # pictures, packed latents, clips


def branches(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cond, uncond, other = torch.randn(3, *shape, generator=generator)
    return cond, uncond, other


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("eta", "limit"), [(1.0, 15.0), (0.0, 2.0), (0.5, 0.0), (0.3, 1e6)])
def test_projected_guidance_equals_the_one_of_diffusers(
    shape: tuple[int, ...], eta: float, limit: float
) -> None:
    cond, uncond, _ = branches(shape)
    ours = uncond + 6.0 * project_difference(cond - uncond, cond, eta, limit)
    theirs = normalized_guidance(cond, uncond, 6.0, None, eta, limit)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, classifier_free(cond, uncond, 6.0), atol=1e-2)


def test_projection_that_keeps_everything_is_classifier_free_guidance() -> None:
    cond, uncond, _ = branches((2, 4, 8, 8))
    projected = project_difference(cond - uncond, cond, 1.0, 0.0)
    assert torch.allclose(projected, cond - uncond, atol=1e-6)


def test_the_parallel_part_goes_and_the_norm_is_limited() -> None:
    cond, uncond, _ = branches((2, 4, 8, 8))
    projected = project_difference(cond - uncond, cond, 0.0, 3.0)
    assert (projected * cond).flatten(1).sum(1).abs().max() < 1e-4
    limited = project_difference(cond - uncond, cond, 1.0, 3.0)
    assert torch.allclose(limited.flatten(1).norm(dim=1), torch.tensor(3.0))
    small = project_difference((cond - uncond) / 1000, cond, 1.0, 3.0)
    assert torch.allclose(small, (cond - uncond) / 1000, atol=1e-8)


def test_a_difference_of_zero_stays_zero() -> None:
    cond, _, _ = branches((2, 4, 8, 8))
    assert torch.equal(
        project_difference(torch.zeros_like(cond), cond, 0.5, 2.0), torch.zeros_like(cond)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_optimal_scale_equals_the_one_of_diffusers_and_is_optimal(
    shape: tuple[int, ...],
) -> None:
    cond, uncond, _ = branches(shape)
    ours = optimal_scale(cond, uncond)
    theirs = cfg_zero_star_scale(cond.flatten(1), uncond.flatten(1))
    assert torch.allclose(ours.flatten(), theirs.flatten(), atol=1e-6)
    best = (cond - ours * uncond).flatten(1).norm(dim=1)
    for wrong in (ours - 0.01, ours + 0.01):
        assert ((cond - wrong * uncond).flatten(1).norm(dim=1) > best).all()


def test_the_optimal_scale_of_a_zero_prediction_is_zero() -> None:
    cond, _, _ = branches((2, 4, 8, 8))
    assert torch.equal(optimal_scale(cond, torch.zeros_like(cond)).flatten(), torch.zeros(2))


@pytest.mark.parametrize("amount", [0.0, 0.7, 1.0])
def test_rescaling_equals_the_one_of_diffusers(amount: float) -> None:
    cond, uncond, _ = branches((2, 4, 8, 8))
    guided = classifier_free(cond, uncond, 7.5)
    ours = rescale_deviation(guided, cond, amount)
    assert torch.allclose(ours, rescale_noise_cfg(guided, cond, amount), atol=1e-6)


def test_rescaling_keeps_a_prediction_of_zero_and_the_conditional_one() -> None:
    cond, _, _ = branches((2, 4, 8, 8))
    zero = torch.zeros_like(cond)
    assert torch.equal(rescale_deviation(zero, cond, 0.7), zero)
    assert torch.allclose(rescale_deviation(cond, cond, 0.7), cond, atol=1e-6)


@pytest.mark.parametrize("scale", [1.1, 2.0, 7.5])
def test_the_solved_branch_gives_the_wanted_prediction(scale: float) -> None:
    cond, wanted, _ = branches((2, 4, 8, 8))
    uncond = solve_uncond(wanted, cond, scale)
    assert torch.allclose(classifier_free(cond, uncond, scale), wanted, atol=1e-4)


def test_image_guidance_with_equal_scales_is_guidance_of_two_branches() -> None:
    cond, image, uncond = branches((2, 4, 8, 8))
    ours = image_guidance(cond, image, uncond, 3.0, 3.0)
    assert torch.allclose(ours, classifier_free(cond, uncond, 3.0), atol=1e-5)
    assert torch.allclose(image_guidance(cond, image, uncond, 1.0, 1.0), cond, atol=1e-6)
