"""Flatten with features of an inversion: what is taken over, where, and until when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from attnctl import Flatten
from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import InjectionPlaces, injection_places
from attnctl.errors import FeatureError, NoSiteError
from attnctl.families import find_family
from attnctl.sites import find_sites
from attnctl.techniques.recorders import AttentionRecorder, ModuleRecorder
from tests.support.pipelines import build
from tests.techniques.clip_runs import FRAMES, Keep, clip, random_flow, video


def places_of(model: Any) -> InjectionPlaces:
    return injection_places(find_sites("unet", model, find_family(model)).values())


def recorded(pipe: Any, **changes: Any) -> tuple[FeatureStore, Tensor]:
    """Features of a run without guidance, and its latents."""
    store, places = FeatureStore(), places_of(pipe.unet)
    recorders = [
        AttentionRecorder(store, where=places.where),
        ModuleRecorder(store, places.modules),
    ]
    return store, clip(pipe, Flatten(random_flow()), *recorders, guidance_scale=1.0, **changes)


def sd15() -> UNet2DConditionModel:
    """The shape of Stable Diffusion 1.5, with few channels."""
    return UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def test_the_places_of_stable_diffusion_are_those_of_the_authors() -> None:
    places = places_of(sd15())
    blocks = {path.partition(".transformer_blocks")[0] for path in places.sites}
    assert blocks == {
        *(f"up_blocks.1.attentions.{n}" for n in (1, 2)),
        *(f"up_blocks.2.attentions.{n}" for n in (0, 1, 2)),
        "up_blocks.3.attentions.0",
    }
    assert all(path.endswith("attn1") for path in places.sites)
    assert sorted(places.modules) == [
        "up_blocks.1.resnets.0.conv2",
        "up_blocks.1.resnets.1.conv2",
        "up_blocks.2.resnets.0.conv2",
    ]


def test_features_of_the_same_run_change_no_bit() -> None:
    pipe = build("sd1")
    store, plain = recorded(pipe)
    technique = Flatten(random_flow(), features=store, inject_until=1.0)
    assert torch.equal(clip(pipe, technique, guidance_scale=1.0), plain)
    assert not torch.equal(clip(pipe, technique, prompt=["a red dog"] * FRAMES), plain)


def test_nothing_is_taken_over_from_step_0_on() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe)
    off = Flatten(random_flow(), features=store, inject_until=0)
    assert torch.equal(clip(pipe, off), clip(pipe, Flatten(random_flow())))


def test_both_branches_take_over_queries_and_keys_until_the_step() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe, prompt=["a frog"] * FRAMES)
    kept = Keep(where=places_of(pipe.unet).where)
    clip(pipe, Flatten(random_flow(), features=store, inject_until=1), kept)
    for call, _ in kept.calls:
        queries = store.get(call.step.timestep, call.site.path, "query")
        keys = store.get(call.step.timestep, call.site.path, "key")
        is_taken = torch.equal(call.query, torch.cat([queries] * 2))
        assert is_taken == torch.equal(call.key, torch.cat([keys] * 2)) == (call.step.index == 0)
    assert {call.step.index for call, _ in kept.calls} == {0, 1}


def test_residual_features_replace_the_output_of_the_convolution() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe, prompt=["a frog"] * FRAMES, steps=1)
    path = places_of(pipe.unet).modules[0]
    block = pipe.unet.get_submodule(path.rpartition(".")[0])
    seen: list[tuple[Tensor, Tensor]] = []
    hook = block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    clip(pipe, Flatten(random_flow(), features=store), steps=1)
    hook.remove()
    given, out = seen[0]
    shortcut = given if block.conv_shortcut is None else block.conv_shortcut(given)
    taken = store.get(store.timesteps[0], path, "output")
    expected = (shortcut + torch.cat([taken] * 2)) / block.output_scale_factor
    assert torch.allclose(out, expected, atol=1e-5)


def test_features_that_do_not_fit_are_refused_before_the_first_step() -> None:
    pipe = build("sd1")
    store, _ = recorded(pipe)
    with pytest.raises(FeatureError, match="store is empty"):
        clip(pipe, Flatten(features=FeatureStore()))
    with pytest.raises(FeatureError, match=r"those of 3 frames, the run has 4"):
        clip(pipe, Flatten(features=store), frames=4)
    with pytest.raises(FeatureError, match="latents"):
        clip(pipe, Flatten(features=store), height=48, width=48)
    with pytest.raises(FeatureError, match=r"no feature.*timestep"):
        clip(pipe, Flatten(features=store), steps=7)
    partial = FeatureStore()
    clip(pipe, AttentionRecorder(partial, where=places_of(pipe.unet).where))
    with pytest.raises(FeatureError, match=r"lack up_blocks.*conv2.*injection_places"):
        clip(pipe, Flatten(features=partial))


def test_a_model_without_a_way_up_has_no_places() -> None:
    pipe = build("wan")
    with pytest.raises(NoSiteError, match=r"way up of a UNet"):
        video(pipe, Flatten(features=FeatureStore()))


def test_animate_diff_takes_features_over() -> None:
    pipe = build("animatediff")
    store, places = FeatureStore(), places_of(pipe.unet)
    recorders = [
        AttentionRecorder(store, where=places.where),
        ModuleRecorder(store, places.modules),
    ]
    plain = video(pipe, *recorders, guidance_scale=1.0)
    technique = Flatten(dense=False, features=store, inject_until=1.0)
    assert torch.equal(video(pipe, technique, guidance_scale=1.0), plain)
    assert not torch.equal(video(pipe, technique, prompt="a red dog", guidance_scale=1.0), plain)
