"""Compiled denoisers give what uncompiled ones give, attached before or after, at each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from attnctl import AttendAndExcite, HeatMaps, Technique, attach
from tests.core.samples import Shift, Temperature
from tests.support.pipelines import generate
from tests.support.pipelines.unets import stable_diffusion

pytestmark = pytest.mark.compile


def small() -> Any:
    """One level: compiling takes a time for each block."""
    torch.manual_seed(0)
    pipe = stable_diffusion(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def whole(pipe: Any) -> None:
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def in_place(pipe: Any) -> None:
    pipe.unet.compile(backend="eager")


def blocks(pipe: Any) -> None:
    pipe.unet.compile_repeated_blocks(backend="eager")


WAYS = (whole, in_place, blocks)


def techniques() -> list[Technique]:
    """Strength that is another one at each step, a gradient, and a reader."""
    excite = AttendAndExcite(["cat"], thresholds={}, scale_factor=100, resolution=16, steps="0-2")
    return [
        Temperature(steps="1- ramp 0.2..1", where="mid|down"),
        excite,
        HeatMaps(),
        Shift(steps="2-3"),
    ]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("is_first", [True, False], ids=["attached first", "compiled first"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_compiled_denoiser_equals_an_uncompiled_one(
    way: Callable[[Any], None], is_first: bool
) -> None:
    pipe = small()
    plain = generate(pipe, steps=3)
    with attach(pipe, techniques()) as session:
        expected = generate(pipe, steps=3)
        heat = session.maps.word("cat")
    if not is_first:
        way(pipe)
        generate(pipe, steps=1)
    with attach(pipe, techniques()) as session:
        if is_first:
            way(pipe)
        compiled = generate(pipe, steps=3)
        again = generate(pipe, steps=3)
        maps = session.maps.word("cat")

    assert torch.allclose(compiled, expected, atol=1e-5)
    assert torch.allclose(again, expected, atol=1e-5)
    assert torch.allclose(maps, heat, atol=1e-4)
    assert torch.allclose(generate(pipe, steps=3), plain, atol=1e-5)


def test_a_changing_strength_compiles_nothing_anew_at_each_step() -> None:
    pipe = small()
    counter = CompileCounter()
    pipe.unet = torch.compile(pipe.unet, backend=counter)
    with attach(pipe, Temperature(steps="ramp 0.1..1")):
        generate(pipe, steps=2)
        after_two = counter.frame_count
        generate(pipe, steps=5)

    assert after_two > 0
    assert counter.frame_count == after_two
