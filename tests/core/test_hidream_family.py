"""HiDream: texts of two encoders behind an image that is filled up, layers before rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from attnctl import HeatMaps, SoftPAG, attach, locate_tokens
from attnctl.calls import AttentionCall
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw, wake_silent_parameters
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.language import llama_tokenizer, small
from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import (
    WIDTH,
    clip_text_projected,
    clip_tokenizer,
    loud,
    t5_text,
    t5_tokenizer,
)

TEXT = 24  # tokens of each of the two encoders


def calls_of(inputs: dict[str, Any]) -> list[AttentionCall]:
    watch, model = Watch(needs_layout=True), DENOISERS["hidream"].build()
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    return watch.seen


def changed(before: Tensor, after: Tensor) -> list[int]:
    return (before - after).abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()


@pytest.mark.parametrize(("sides", "filled"), [((8, 8), 16), ((4, 6), 16)])
def test_image_and_texts_lie_where_the_layout_says(sides: tuple[int, int], filled: int) -> None:
    inputs = DENOISERS["hidream"].inputs()
    inputs["hidden_states"] = Draw(3).normal(2, 4, *sides)
    latents = inputs["hidden_states"].clone()
    latents[..., 2:4, 4:6] += 5.0  # row 1, column 2
    worded = {name: inputs[name] + 1 for name in inputs if name.startswith("encoder_hidden")}
    before = calls_of(inputs)[0]
    moved, other = (calls_of(inputs | i)[0] for i in ({"hidden_states": latents}, worded))
    height, width = (side // 2 for side in sides)
    assert before.layout is not None
    assert (before.layout.grid, before.layout.image.stop) == ((1, height, width), height * width)
    assert before.layout.text == slice(filled, before.key.shape[2])
    assert changed(before.query, moved.query) == [width + 2]
    assert changed(before.key, other.key) == list(range(filled, before.key.shape[2]))


def hidream() -> HiDreamImagePipeline:
    """HiDream with four small text encoders."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip, llama = clip_tokenizer(), llama_tokenizer()
        llama.eos_token = "<|eot_id|>"
        transformer = HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(10, 10),
            llama_layers=(0, 1),
            force_inference_output=True,
        )
        wake_silent_parameters(transformer, 2.0)
        pipe = HiDreamImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=clip_text_projected(clip),
            tokenizer=clip,
            text_encoder_2=clip_text_projected(clip),
            tokenizer_2=clip,
            text_encoder_3=t5_text(),
            tokenizer_3=t5_tokenizer(),
            text_encoder_4=loud(LlamaForCausalLM(LlamaConfig(**small(len(llama))))),
            tokenizer_4=llama,
            transformer=transformer.eval(),
        )
    pipe.text_encoder_4.config._attn_implementation = "eager"  # it is asked for its maps
    pipe.default_sample_size = 10
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: HiDreamImagePipeline, scale: float = 3.0, **more: Any) -> Tensor:
    """Latents of pictures, ``(n, 4, 8, 12)``."""
    call: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2}
    call |= {"max_sequence_length": TEXT, "output_type": "latent", "generator": seeded(0), **more}
    return pipe(PROMPT, guidance_scale=scale, **call)[0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_branches_lie_in_one_batch(scale: float) -> None:
    pipe, watch = hidream(), Watch(needs_layout=True)
    before, plain = fingerprint(pipe.transformer), paint(pipe, scale)
    with attach(pipe, watch):
        assert torch.equal(paint(pipe, scale), plain)
    assert differences(before, fingerprint(pipe.transformer)) == []
    rows = (("uncond", 0), ("cond", 0)) if scale > 1 else (("cond", 0),)
    assert watch.rows_by_step == {step: {rows} for step in range(2)}


@pytest.mark.parametrize("count", [1, 2])
def test_a_perturbed_row_has_all_layers_of_its_text(count: int) -> None:
    pipe = hidream()
    plain = paint(pipe, num_images_per_prompt=count)
    with attach(pipe, SoftPAG(scale=2.0, where="joint,layers=1")):
        guided = paint(pipe, num_images_per_prompt=count)
    assert (guided - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4


def test_words_are_those_of_t5() -> None:
    pipe = hidream()
    (cat,) = locate_tokens(pipe, PROMPT, "cat")
    assert cat.encoder == "text_encoder_3"
    with attach(pipe, HeatMaps(["cat"])) as session:
        paint(pipe)
        assert session.maps.positions("cat") == list(cat.positions)
        assert session.maps.word("cat").shape == (4, 6)
