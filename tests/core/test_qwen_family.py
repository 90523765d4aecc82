"""Qwen-Image against its real pipeline at toy size: the image begins where the text ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from torch import Tensor

from attnctl import AttendAndExcite, HeatMaps, SoftPAG, attach, locate_tokens
from tests.core.samples import Watch
from tests.support.denoisers.entry import wake_silent_parameters
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.language import qwen_text, qwen_tokenizer
from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import WIDTH

CELLS = 4 * 6


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image with a text encoder of two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = qwen_tokenizer()
        transformer = QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
        wake_silent_parameters(transformer, 2.0)
        pipe = QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=None,
            text_encoder=qwen_text(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer.eval(),
        )
    # A constant of the real tokenizer, counted anew for this one.
    prefix = pipe.prompt_template_encode.split("{}")[0]
    pipe.prompt_template_encode_start_idx = len(tokenizer(prefix).input_ids)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: QwenImagePipeline, is_guided: bool = True, **more: Any) -> Tensor:
    """Packed latents of a picture, ``(1, 24, 16)``."""
    call: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 3, **more}
    call |= {"negative_prompt": "a dog"} if is_guided else {}
    call |= {"true_cfg_scale": 3.0, "output_type": "latent", "generator": seeded(0)}
    return pipe(PROMPT, **call)[0]


@pytest.mark.parametrize("is_guided", [True, False])
def test_each_branch_has_its_own_place_of_the_image(is_guided: bool) -> None:
    pipe, watch = qwen_image(), Watch(needs_layout=True)
    plain = paint(pipe, is_guided)
    before = fingerprint(pipe.transformer)
    with attach(pipe, watch):
        assert torch.equal(paint(pipe, is_guided), plain)
    assert differences(before, fingerprint(pipe.transformer)) == []
    rows = {(("cond", 0),), (("uncond", 0),)} if is_guided else {(("cond", 0),)}
    assert watch.rows_by_step == dict.fromkeys(range(3), rows)
    starts = set[int]()
    for call in watch.seen:
        assert call.layout is not None
        assert (call.layout.grid, call.layout.image.stop) == ((1, 4, 6), call.query.shape[2])
        starts.add(call.layout.image.start)
        assert call.query.shape[2] == call.layout.image.start + CELLS
    assert len(starts) == len(rows)


def test_words_lie_behind_the_template() -> None:
    pipe = qwen_image()
    (cat,) = locate_tokens(pipe, PROMPT, "cat")
    ids = pipe.tokenizer(PROMPT, add_special_tokens=False).input_ids
    tokens = pipe.tokenizer.convert_ids_to_tokens([ids[place] for place in cat.positions])
    assert tuple(tokens) == cat.tokens
    with attach(pipe, HeatMaps(["cat"])) as session:
        paint(pipe)
        assert session.maps.positions("cat") == list(cat.positions)
        assert session.maps.word("cat").shape == (4, 6)


def test_guidance_and_excitement_reach_the_picture() -> None:
    pipe = qwen_image()
    plain = paint(pipe)
    exciting = AttendAndExcite(["cat"], where="joint", thresholds={}, scale_factor=20)
    for technique in (SoftPAG(scale=2.0, where="joint,layers=1"), exciting):
        with attach(pipe, technique):
            change = (paint(pipe) - plain).abs().amax(dim=(0, 1))
        assert change.shape == (16,)  # four channels of four cells
        assert change.min() > 1e-6
    assert torch.equal(paint(pipe), plain)
