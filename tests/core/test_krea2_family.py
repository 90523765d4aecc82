"""Krea 2 against its real pipeline at toy size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor

from attnctl import APG, HeatMaps, SoftPAG, attach, locate_tokens
from tests.core.samples import Watch
from tests.support.denoisers.entry import wake_silent_parameters
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.language import qwen_text, qwen_tokenizer
from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import WIDTH

TEXT = 60  # tokens of a prompt, padding and the end of the template included


def krea2() -> Krea2Pipeline:
    """Krea 2 with a text encoder of two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = qwen_tokenizer()
        transformer = Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        )
        wake_silent_parameters(transformer, 2.0)
        pipe = Krea2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=None,
            text_encoder=qwen_text(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer.eval(),
            text_encoder_select_layers=(0, 2),
        )
    # Constants of the real tokenizer, counted anew for this one.
    for name, text in {
        "start_idx": pipe.prompt_template_encode_prefix,
        "num_suffix_tokens": pipe.prompt_template_encode_suffix,
    }.items():
        setattr(pipe, f"prompt_template_encode_{name}", len(tokenizer(text).input_ids))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Krea2Pipeline, scale: float = 3.0) -> Tensor:
    """Packed latents of a picture, ``(1, 24, 16)``."""
    call: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3}
    call |= {"max_sequence_length": TEXT, "output_type": "latent", "generator": seeded(0)}
    return pipe(PROMPT, guidance_scale=scale, **call)[0]


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_each_branch_has_a_call_of_its_own(scale: float) -> None:
    pipe, watch = krea2(), Watch(needs_layout=True)
    before, plain = fingerprint(pipe.transformer), paint(pipe, scale)
    with attach(pipe, watch):
        assert torch.equal(paint(pipe, scale), plain)
    assert differences(before, fingerprint(pipe.transformer)) == []
    rows = {(("cond", 0),), (("uncond", 0),)} if scale else {(("cond", 0),)}
    assert watch.rows_by_step == dict.fromkeys(range(3), rows)
    layout = watch.seen[0].layout
    assert layout is not None
    assert (layout.grid, layout.text, layout.image) == ((1, 4, 6), slice(0, TEXT), slice(60, 84))


def test_words_lie_behind_the_template() -> None:
    pipe = krea2()
    (cat,) = locate_tokens(pipe, PROMPT, "cat")
    ids = pipe.tokenizer(PROMPT, add_special_tokens=False).input_ids
    assert [ids[place] for place in cat.positions] == pipe.tokenizer(
        " cat", add_special_tokens=False
    ).input_ids
    with attach(pipe, HeatMaps(["cat"])) as session:
        paint(pipe)
        assert session.maps.positions("cat") == list(cat.positions)
        assert session.maps.word("cat").shape == (4, 6)


def test_guidance_is_added_and_the_scale_counts_from_the_conditional_prediction() -> None:
    pipe = krea2()
    plain = paint(pipe)
    with attach(pipe, SoftPAG(scale=2.0, where="joint,layers=1")):
        assert (paint(pipe) - plain).abs().max() > 1e-4
    with attach(pipe, APG(eta=1.0, norm_threshold=0.0)):  # the pipeline's own formula
        assert (paint(pipe) - plain).abs().max() < 1e-4 * plain.abs().max()
