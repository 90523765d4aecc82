"""Blocks of a denoiser: found by the attention they hold, with the streams that they return."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl import SEG, attach
from attnctl.blocks import find_blocks
from attnctl.sites import Site
from tests.support.pipelines import build, generate


def test_blocks_are_found_from_the_attention_that_they_hold() -> None:
    paths = [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
        "down_blocks.1.attentions.0",  # attention that is itself a member of a list
        "blocks.3.attn",
    ]
    sites = [Site("unet", path, "self") for path in paths]
    sites.append(Site("unet", "motion.0.attn1", "temporal"))
    found = find_blocks(sites, ())
    assert [(block.index, block.path) for block in found] == [
        (0, "down_blocks.0.attentions.0.transformer_blocks.0"),
        (1, "blocks.3"),
    ]


@pytest.mark.parametrize("name", ["sd3", "sd35", "flux", "wan", "pixart_sigma", "cogvideox"])
def test_streams_of_a_family_are_what_its_blocks_return(name: str) -> None:
    pipe = build(name)
    with attach(pipe, SEG(where="all" if name != "wan" else "self")) as session:
        control = session._control
        driver = control.runs.drivers["transformer"]
        blocks = find_blocks(control.sites["transformer"].values(), driver.family.blocks)
    shapes: dict[str, tuple[Any, Any]] = {}

    def keep(path: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            given = {
                **dict(zip(("hidden_states", "encoder_hidden_states"), args, strict=False)),
                **kwargs,
            }
            shapes[path] = given, output

        return hook

    model = driver.model
    hooks = [
        model.get_submodule(block.path).register_forward_hook(keep(block.path), with_kwargs=True)
        for block in blocks
    ]
    generate(pipe, steps=1)
    for hook in hooks:
        hook.remove()
    assert len(shapes) == len(blocks) > 0
    for block in blocks:
        given, output = shapes[block.path]
        outputs = [output] if isinstance(output, torch.Tensor) else list(output)
        assert len(outputs) == len(block.streams)
        for stream, out in zip(block.streams, outputs, strict=True):
            assert out is None or out.shape == given[stream].shape
