"""NAG against loops of our own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import NAG
from tests.support.pipelines import build, generate
from tests.techniques.nag_reference import CrossProcessor, Guide, flux_nag, guide, sd3_nag
from tests.techniques.nag_runs import DEFAULTS, NEGATIVE, assert_close, encoded, steered


def site_text(pipe: Any) -> tuple[Tensor, Tensor | None]:
    """The negative prompt as cross-attention sites see it, and its bias ``(1, 1, 1, tokens)``."""
    name = type(pipe).__name__
    if name.startswith("PixArt"):
        text, mask = encoded(pipe, NEGATIVE, max_sequence_length=16, clean_caption=False)[:2]
        bias = (1 - mask.float())[:, None, None] * -10000.0
        return pipe.transformer.caption_projection(text), bias
    if name.startswith("Wan"):
        text = encoded(pipe, NEGATIVE, max_sequence_length=16)[0]
        return pipe.transformer.condition_embedder.text_embedder(text), None
    return encoded(pipe, NEGATIVE)[0], None


def with_own_processors(pipe: Any, rows: slice, blend: Guide, where: str = "", **changes: Any):
    """The latents of a pipeline whose cross-attention is computed by our own processor."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        text, bias = site_text(pipe)
    kept = {}
    for path, module in model.named_modules():
        if path.endswith("attn2") and where in path:
            kept[module] = module.processor
            module.processor = CrossProcessor(text, bias, rows, blend)
    try:
        return generate(pipe, **changes)
    finally:
        for module, processor in kept.items():
            module.processor = processor


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma"])
@pytest.mark.parametrize(("scale", "rows"), [(5.0, slice(1, None)), (1.0, slice(None))])
def test_cross_attention_equals_processors_of_our_own(name: str, scale: float, rows: slice) -> None:
    pipe = build(name)
    plain = generate(pipe, guidance_scale=scale)
    ours = steered(pipe, guidance_scale=scale)
    theirs = with_own_processors(pipe, rows, DEFAULTS, guidance_scale=scale)
    assert_close(ours, theirs, plain)


def test_wan_equals_processors_of_our_own_without_guidance() -> None:
    pipe = build("wan")
    plain = generate(pipe, guidance_scale=1.0)
    ours = steered(pipe, guidance_scale=1.0)
    assert_close(ours, with_own_processors(pipe, slice(None), DEFAULTS, guidance_scale=1.0), plain)


@pytest.mark.parametrize(
    ("settings", "blend"),
    [
        ({"scale": 2.0, "alpha": 0.5, "norm": "l1"}, guide(2.0, 2.5, 0.5, 1)),
        ({"scale": 30.0, "tau": 1.25, "alpha": 1.0}, guide(30.0, 1.25, 1.0, 2)),
    ],
)
def test_every_setting_reaches_the_sites(settings: dict[str, Any], blend: Guide) -> None:
    pipe = build("sd1")
    ours = steered(pipe, NAG(NEGATIVE, **settings))
    theirs = with_own_processors(pipe, slice(1, None), blend)
    assert_close(ours, theirs, generate(pipe))


def test_only_selected_sites_are_guided() -> None:
    pipe = build("sd1")
    ours = steered(pipe, NAG(NEGATIVE, where="mid:cross"))
    theirs = with_own_processors(pipe, slice(1, None), DEFAULTS, where="mid_block")
    assert_close(ours, theirs, generate(pipe))


def flux_inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    """Two items of 4 by 4 image tokens and 6 text tokens."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    ids = torch.zeros(16, 3)
    ids[:, 1:] = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    return {
        "hidden_states": torch.randn(2, 16, config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(2, 6, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([0.6, 0.6]),
        "guidance": torch.tensor([3.5, 3.5]) if config.guidance_embeds else None,
        "img_ids": ids,
        "txt_ids": torch.zeros(6, 3),
    }


def sd3_inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    """Two items of 8 by 8 latents and 6 text tokens."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    return {
        "hidden_states": torch.randn(2, config.in_channels, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 6, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([600.0, 600.0]),
    }


@pytest.mark.parametrize("name", ["flux", "flux_dev", "sd3", "sd35"])
@torch.no_grad()
def test_joint_attention_equals_a_loop_with_two_text_streams(name: str) -> None:
    model = build(name).transformer
    make, loop = (flux_inputs, flux_nag) if name.startswith("flux") else (sd3_inputs, sd3_nag)
    inputs = make(model)
    negative = {k: v[:1] for k, v in make(model, seed=1).items() if k in TEXT_ARGUMENTS}
    seen: list[Tensor] = []
    hook = model.proj_out.register_forward_hook(lambda *call: seen.append(call[-1][:2].clone()))
    model(**inputs)
    with attnctl.attach(model, [NAG(negative_embeds=negative)]):
        model(**inputs)
    hook.remove()
    plain, ours = seen
    assert_close(ours, loop(model, inputs, negative, DEFAULTS), plain)


TEXT_ARGUMENTS = ("encoder_hidden_states", "pooled_projections")
