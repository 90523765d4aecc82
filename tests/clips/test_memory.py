"""The computed memory of a clip, against what torch's allocators hand out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import attnctl
from attnctl import Flatten
from attnctl.bench.memory import peak_bytes
from attnctl.clips.memory import plan_clip_memory
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import injection_places
from attnctl.techniques.recorders import AttentionRecorder, ModuleRecorder
from tests.techniques.clip_runs import random_flow


def small(**settings: Any) -> UNet2DConditionModel:
    """A UNet of two levels whose activations outweigh its weights."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
        **settings,
    ).eval()


@pytest.mark.parametrize(("frames", "sides"), [(4, (32, 32)), (6, (24, 40))])
def test_the_plan_holds_for_a_step_that_is_weighed(frames: int, sides: tuple[int, int]) -> None:
    model = small()
    latents, text = torch.randn(frames, 4, *sides), torch.randn(frames, 5, 16)
    with attnctl.attach(model, Flatten(random_flow(frames))), torch.no_grad():
        model(latents, 10, text)  # lanes are made
        _, held = peak_bytes(lambda: model(latents, 10, text))
    plan = plan_clip_memory(model, frames, sides, branches=1)
    expected = plan.device - plan.weights
    assert 0.5 * expected < held < 1.1 * expected


def test_recorded_features_are_those_of_the_plan() -> None:
    model, store = small(), FeatureStore()
    with attnctl.attach(model, Flatten()) as session:
        places = injection_places(session.sites)
    recorders = [
        AttentionRecorder(store, where=places.where),
        ModuleRecorder(store, places.modules),
    ]
    with attnctl.attach(model, recorders), torch.no_grad():
        model(torch.randn(3, 4, 16, 24), 10, torch.randn(3, 5, 16))
    plan = plan_clip_memory(model, 3, (16, 24), branches=1, injected_steps=1)
    assert store.nbytes == plan.features > 0


def test_thirty_two_frames_of_stable_diffusion_fit_in_24_gigabytes() -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    plan = plan_clip_memory(model, 32, (64, 64), injected_steps=40, element_bytes=2)
    assert plan.weights == pytest.approx(2 * 860e6, rel=0.01)
    assert 4 * 10**9 < plan.device < 24 * 10**9
    assert "on the device" in plan.table()
