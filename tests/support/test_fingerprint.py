"""The fingerprint sees each trace that attnctl could leave, and names it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"

Trace = Callable[[StableDiffusionPipeline], object]
TRACES: dict[str, tuple[Trace, str]] = {
    "another processor of the same type": (
        lambda pipe: setattr(
            pipe.unet.get_submodule(SITE),
            "processor",
            type(pipe.unet.get_submodule(SITE).processor)(),
        ),
        f"unet.{SITE} processor: was",
    ),
    "a forward hook": (
        lambda pipe: pipe.unet.register_forward_hook(lambda *call: None),
        "unet hooks: lost [], gained [('_forward_hooks', 1)]",
    ),
    "a forward pre-hook with keywords": (
        lambda pipe: pipe.unet.register_forward_pre_hook(lambda *call: None, with_kwargs=True),
        "('_forward_pre_hooks_with_kwargs', 1)",
    ),
    "a replaced forward": (
        lambda pipe: setattr(pipe.unet.mid_block, "forward", pipe.unet.mid_block.forward),
        "unet.mid_block forward: new",
    ),
    "an attribute of a module": (
        lambda pipe: setattr(pipe.unet, "attnctl", 1),
        "unet attributes: lost [], gained ['attnctl']",
    ),
    "an attribute of a processor": (
        lambda pipe: setattr(pipe.unet.get_submodule(SITE).processor, "owner", 1),
        f"unet.{SITE} processor attributes: lost [], gained ['owner']",
    ),
    "a frozen parameter": (
        lambda pipe: pipe.unet.conv_in.weight.requires_grad_(False),
        "unet.conv_in parameters: lost",
    ),
    "a gradient": (
        lambda pipe: setattr(
            pipe.unet.conv_in.weight, "grad", torch.zeros_like(pipe.unet.conv_in.weight)
        ),
        "unet.conv_in parameters: lost",
    ),
    "a new parameter": (
        lambda pipe: pipe.unet.register_parameter("extra", torch.nn.Parameter(torch.ones(1))),
        "unet state dict: lost [], gained [('extra', (1,))]",
    ),
    "an attribute of the pipeline": (
        lambda pipe: setattr(pipe, "session", 1),
        "pipe attributes: lost [], gained ['session']",
    ),
    "a shadowed scheduler step": (
        lambda pipe: setattr(pipe.scheduler, "step", pipe.scheduler.step),
        "scheduler attributes: lost [], gained ['step']",
    ),
    "another scheduler": (
        lambda pipe: setattr(pipe, "scheduler", type(pipe.scheduler)()),
        "scheduler identity: was",
    ),
    "a draw from the global generator": (lambda pipe: torch.rand(1), "random state: was"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_seen_and_named(name: str) -> None:
    leave_trace, message = TRACES[name]
    pipe = build("sd1")
    before = fingerprint(pipe)
    kept = leave_trace(pipe)

    lines = differences(before, fingerprint(pipe))

    assert any(message in line for line in lines), (kept, lines)


def test_a_class_attribute_is_seen_from_any_instance() -> None:
    pipe = build("sd1")
    before = fingerprint(pipe.unet)
    type(pipe.unet).left_behind = 1
    try:
        lines = differences(before, fingerprint(pipe.unet))
    finally:
        del type(pipe.unet).left_behind

    assert [line for line in lines if "UNet2DConditionModel" in line and "left_behind" in line]
    assert differences(before, fingerprint(pipe.unet)) == []


@pytest.mark.parametrize("change", ["grad mode", "default dtype", "deterministic"])
def test_global_state_is_seen(change: str) -> None:
    model = build("sd1").unet
    before = fingerprint(model)
    try:
        torch.set_grad_enabled(change != "grad mode")
        torch.set_default_dtype(torch.float64 if change == "default dtype" else torch.float32)
        torch.use_deterministic_algorithms(change == "deterministic")
        lines = differences(before, fingerprint(model))
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)

    assert [line.split(":")[0] for line in lines] == [f"process {change}"]


def test_ignored_endings_are_left_out() -> None:
    model = build("sd1").unet
    before = fingerprint(model)
    torch.rand(1)

    assert differences(before, fingerprint(model), ignore=["random state"]) == []
