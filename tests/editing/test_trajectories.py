"""Latents of a run by the timestep of their level."""

from __future__ import annotations

import pytest
import torch

from attnctl.editing.trajectories import Trajectory
from attnctl.errors import FeatureError

LATENTS = [torch.full((2, 3), float(level)) for level in range(4)]


def test_each_timestep_has_the_latents_before_and_after_its_step() -> None:
    known = Trajectory([900.0, 500.0, 0.0], LATENTS)

    assert known.noise is LATENTS[0] or torch.equal(known.noise, LATENTS[0])
    assert torch.equal(known.clean, LATENTS[3])
    assert torch.equal(known.at(500.0), LATENTS[1])
    assert torch.equal(known.after(500.0), LATENTS[2])
    assert torch.equal(known.after(0.0), LATENTS[3])
    assert known.items == 2
    assert known.nbytes == 4 * 2 * 3 * 4


def test_a_timestep_between_is_an_error_and_never_the_neighbour() -> None:
    known = Trajectory([900.0, 500.0, 0.0], LATENTS, offload=True)
    with pytest.raises(FeatureError, match="timestep 499; it has 3 steps from 900 to 0"):
        known.after(499.0)


def test_one_more_latents_than_steps_are_wanted() -> None:
    with pytest.raises(ValueError, match="3 timesteps want 4 latents, got 3"):
        Trajectory([3, 2, 1], LATENTS[:3])
