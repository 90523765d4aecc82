"""RF-Inversion's pull against its formula."""

from __future__ import annotations

import torch

from attnctl.ops.inversion import controlled_velocity


def test_the_pull_is_the_papers_mixture_for_each_item() -> None:
    generator = torch.Generator().manual_seed(0)
    velocity, latents = (torch.randn(3, 4, 5, generator=generator).double() for _ in range(2))
    source, level, eta = torch.randn(1, 4, 5, generator=generator).double(), 0.7, [0.0, 0.5, 1.0]
    got = controlled_velocity(velocity, latents, source, level, torch.tensor(eta))

    for item in range(3):
        straight = (latents[item] - source[0]) / level
        expected = (1 - eta[item]) * velocity[item] + eta[item] * straight
        assert torch.allclose(got[item], expected, atol=1e-12)
    assert torch.equal(got[0], velocity[0])


def test_a_full_pull_leads_straight_to_the_source() -> None:
    latents, source = torch.ones(2, 3), torch.zeros(1, 3)
    for level, following in ((1.0, 0.6), (0.6, 0.25), (0.25, 0.0)):
        velocity = torch.full((2, 3), 7.0)
        pulled = controlled_velocity(velocity, latents, source, level, torch.ones(2))
        latents = latents + (following - level) * pulled
        assert torch.allclose(latents, torch.full((2, 3), following), atol=1e-6)


def test_half_precision_is_widened() -> None:
    half = torch.ones(1, 2, dtype=torch.float16)
    assert controlled_velocity(half, half, half, 0.5, torch.ones(1)).dtype == torch.float32
