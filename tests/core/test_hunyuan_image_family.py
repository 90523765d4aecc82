"""HunyuanImage 2.1 against its denoiser and its real pipeline at toy size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from torch import Tensor

from attnctl import APG, HeatMaps, SoftPAG, attach, locate_tokens
from attnctl.calls import AttentionCall
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw, wake_silent_parameters
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.language import byt5_text, byt5_tokenizer, qwen_text, qwen_tokenizer
from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import WIDTH

HEIGHT, WIDE = 6, 10
CELLS = HEIGHT * WIDE
TEXT = 60


def inputs_of() -> dict[str, Any]:
    """The usual inputs with latents that are no square, three glyphs and four words a row."""
    inputs = DENOISERS["hunyuan_image"].inputs()
    inputs["hidden_states"] = Draw(5).normal(2, 4, HEIGHT, WIDE)
    inputs["encoder_attention_mask"] = torch.tensor([[1] * 4 + [0] * 2] * 2)
    inputs["encoder_attention_mask_2"] = torch.tensor([[1] * 3 + [0] * 2] * 2)
    return inputs


def calls_of(inputs: dict[str, Any]) -> list[AttentionCall]:
    watch, model = Watch(needs_layout=True), DENOISERS["hunyuan_image"].build()
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    return watch.seen


def changed_tokens(before: Tensor, after: Tensor) -> list[int]:
    return (before - after).abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()


def test_image_glyphs_and_text_lie_where_the_layout_says() -> None:
    inputs = inputs_of()
    latents, text = inputs["hidden_states"].clone(), inputs["encoder_hidden_states"] + 1
    latents[..., 2, 7] += 5.0
    before = calls_of(inputs)
    moved = calls_of({**inputs, "hidden_states": latents})
    worded = calls_of({**inputs, "encoder_hidden_states": text})
    layout = before[0].layout
    assert layout is not None
    assert (layout.grid, layout.image) == ((1, HEIGHT, WIDE), slice(0, CELLS))
    assert layout.text == slice(CELLS + 3, CELLS + 7)
    assert changed_tokens(before[0].query, moved[0].query) == [2 * WIDE + 7]
    seen = [token for token in changed_tokens(before[0].key, worded[0].key) if token < CELLS + 7]
    assert seen == list(range(CELLS + 3, CELLS + 7))  # what is behind is padding
    for call in before:
        assert call.query.shape[2] == CELLS + 5 + 6


def test_rows_with_glyphs_of_two_lengths_have_no_text() -> None:
    inputs = inputs_of()
    inputs["encoder_attention_mask_2"][0, 2] = 0
    layout = calls_of(inputs)[0].layout
    assert layout is not None
    assert layout.text is None


def hunyuan_image() -> HunyuanImagePipeline:
    """HunyuanImage with guidance by an object."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer, glyphs = qwen_tokenizer(), byt5_tokenizer()
        transformer = HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(4, 4),
        )
        wake_silent_parameters(transformer, 2.0)
        pipe = HunyuanImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=qwen_text(tokenizer),
            tokenizer=tokenizer,
            text_encoder_2=byt5_text(glyphs),
            tokenizer_2=glyphs,
            transformer=transformer.eval(),
            guider=ClassifierFreeGuidance(guidance_scale=4.0),
        )
    # Constants of the real tokenizer, counted anew for this one; less padding.
    prefix = pipe.prompt_template_encode.split("{}")[0]
    pipe.prompt_template_encode_start_idx = len(tokenizer(prefix).input_ids)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = TEXT, 16
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: HunyuanImagePipeline, prompt: str = PROMPT) -> Tensor:
    """Latents of a picture, ``(1, 4, 6, 10)``."""
    call = {"height": 32 * HEIGHT, "width": 32 * WIDE, "num_inference_steps": 3}
    return pipe(prompt, **call, output_type="latent", generator=seeded(0))[0]


@pytest.mark.parametrize("is_guided", [True, False])
def test_each_branch_has_a_call_of_its_own(is_guided: bool) -> None:
    pipe, watch = hunyuan_image(), Watch(needs_layout=True)
    if not is_guided:
        pipe.guider.disable()
    plain = paint(pipe)
    before = fingerprint(pipe.transformer)  # diffusers has put a hook of its own on it by now
    with attach(pipe, watch):
        assert torch.equal(paint(pipe), plain)
    assert differences(before, fingerprint(pipe.transformer)) == []
    rows = {(("cond", 0),), (("uncond", 0),)} if is_guided else {(("cond", 0),)}
    assert watch.rows_by_step == dict.fromkeys(range(3), rows)


def test_words_lie_behind_the_template_and_the_glyphs() -> None:
    pipe = hunyuan_image()
    (cat,) = locate_tokens(pipe, PROMPT, "cat")
    with attach(pipe, HeatMaps(["cat"])) as session:
        paint(pipe)
        assert session.maps.positions("cat") == list(cat.positions)
        assert session.maps.word("cat").shape == (HEIGHT, WIDE)
    watch = Watch(needs_layout=True)
    with attach(pipe, watch):
        paint(pipe, 'a sign that says "frog"')
    layout = watch.seen[0].layout
    assert layout is not None
    assert layout.text is not None
    assert layout.text.start > CELLS  # one token a byte of the lettering


def test_guidance_is_added_to_that_of_the_object() -> None:
    pipe = hunyuan_image()
    plain = paint(pipe)
    with attach(pipe, SoftPAG(scale=2.0, where="joint,layers=1")):
        assert (paint(pipe) - plain).abs().max() > 1e-4
    with attach(pipe, APG(eta=1.0, norm_threshold=0.0)):  # the object's own formula
        assert (paint(pipe) - plain).abs().max() < 1e-4 * plain.abs().max()
