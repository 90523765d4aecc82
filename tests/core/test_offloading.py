"""Offloaded, checkpointed and switched pipelines are steered as plain ones are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers.hooks import apply_group_offloading

from attnctl import attach
from tests.core.steering import steered, steering
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate


def sequential(pipe: Any) -> None:
    """Weights wait on the meta device and come back for each layer."""
    cpu_offload(pipe.unet, torch.device("cpu"), offload_buffers=True)


def whole_model(pipe: Any) -> None:
    """The model as a whole waits on the CPU."""
    cpu_offload_with_hook(pipe.unet, torch.device("cpu"))


def by_leaf(pipe: Any) -> None:
    """Diffusers' group offloading, one leaf at a time."""
    device = torch.device("cpu")
    apply_group_offloading(pipe.unet, device, device, offload_type="leaf_level")


def by_block(pipe: Any) -> None:
    """Diffusers' group offloading, one block at a time."""
    device = torch.device("cpu")
    apply_group_offloading(
        pipe.unet, device, device, offload_type="block_level", num_blocks_per_group=1
    )


OFFLOADS: Sequence[Callable[[Any], None]] = (sequential, whole_model, by_leaf, by_block)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize("offload", OFFLOADS, ids=lambda offload: offload.__name__)
def test_offloading_before_or_after_attaching_changes_nothing(
    name: str, offload: Callable[[Any], None]
) -> None:
    expected, _ = steered(build(name))
    before = build(name)
    offload(before)
    plain = generate(before)
    mark = fingerprint(before)
    assert torch.equal(expected, steered(before)[0])
    # Sequential offloading makes new parameters at each call, by itself.
    assert differences(mark, fingerprint(before), ignore=["parameters"]) == []
    assert torch.equal(plain, generate(before))
    after = build(name)
    with attach(after, steering()):
        offload(after)
        assert torch.equal(expected, generate(after))
    assert torch.equal(plain, generate(after))


def test_offloading_may_end_while_attached() -> None:
    pipe = build("sd1")
    expected, _ = steered(pipe)
    sequential(pipe)
    with attach(pipe, steering()):
        assert torch.equal(expected, generate(pipe))
        remove_hook_from_module(pipe.unet, recurse=True)
        assert torch.equal(expected, generate(pipe))


def test_gradient_checkpointing_gives_the_same_moves() -> None:
    pipe = build("sd1")
    expected, _ = steered(pipe)
    pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train()

    assert torch.allclose(steered(pipe)[0], expected, atol=1e-4)


def test_fused_projections_give_the_same_result() -> None:
    pipe = build("sd1")
    expected, _ = steered(pipe)
    pipe.unet.fuse_qkv_projections()
    fused, _ = steered(pipe)
    pipe.unet.unfuse_qkv_projections()

    assert torch.allclose(fused, expected, atol=1e-3)
    assert torch.equal(steered(pipe)[0], expected)


@pytest.mark.parametrize("feature", ["enable_attention_slicing", "enable_freeu"])
def test_other_switches_of_a_pipeline_work_with_techniques(feature: str) -> None:
    pipe = build("sd1")
    expected, _ = steered(pipe)
    arguments = {"s1": 0.9, "s2": 0.9, "b1": 1.2, "b2": 1.2} if "freeu" in feature else {}
    getattr(pipe, feature)(**arguments)
    plain = generate(pipe)
    ours, _ = steered(pipe)

    assert not torch.equal(ours, plain)
    if feature == "enable_attention_slicing":
        assert torch.allclose(ours, expected, atol=1e-3)
    assert torch.equal(plain, generate(pipe))
