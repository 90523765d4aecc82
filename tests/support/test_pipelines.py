"""The tiny pipelines run, repeat exactly, follow their prompts and take adapters."""

from __future__ import annotations

import pytest
import torch

from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import (
    PIPELINES,
    PROMPT,
    build,
    generate,
    ip_adapter_state,
    lora_state,
    picture,
)
from tests.support.pipelines.text import clip_tokenizer, t5_tokenizer

OTHER_PROMPT = "a red dog on the blue photo"
PROMPTED = [name for name in PIPELINES if name != "dit"]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_repeats_exactly_and_leaves_the_pipeline_as_it_was(name: str) -> None:
    pipe = build(name)
    first = generate(pipe)
    before = fingerprint(pipe)

    assert first.isfinite().all()
    assert torch.equal(first, generate(pipe))
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(first, generate(build(name)))


@pytest.mark.parametrize("name", PROMPTED)
def test_a_batch_of_prompts_equals_single_runs(name: str) -> None:
    pipe = build(name)
    both = generate(pipe, [PROMPT, OTHER_PROMPT])
    singles = torch.cat([generate(pipe, PROMPT), generate(pipe, OTHER_PROMPT, seed=1)])

    assert (both - singles).abs().max() < 1e-5 * singles.abs().max()
    assert not torch.equal(generate(pipe, PROMPT), generate(pipe, OTHER_PROMPT))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux", "animatediff", "cogvideox", "wan"])
def test_lora_weights_change_the_result_until_they_are_unloaded(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    denoiser = "unet" if hasattr(pipe, "unet") else "transformer"
    pipe.load_lora_weights(lora_state(getattr(pipe, denoiser), prefix=denoiser))
    adapted = generate(pipe)
    pipe.unload_lora_weights()

    assert not torch.equal(plain, adapted)
    assert torch.equal(plain, generate(pipe))


@pytest.mark.parametrize("name", ["sd1", "sd1_deep", "sd1_controlnet", "sdxl", "animatediff"])
def test_ip_adapter_follows_its_picture_until_its_scale_is_zero(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    pipe.load_ip_adapter(ip_adapter_state(pipe.unet), subfolder="", weight_name="")
    one, other = (generate(pipe, ip_adapter_image=picture(seed)) for seed in (3, 4))
    pipe.set_ip_adapter_scale(0.0)

    assert not torch.equal(plain, one)
    assert not torch.equal(one, other)
    assert torch.equal(plain, generate(pipe, ip_adapter_image=picture(3)))


def test_any_text_becomes_clip_tokens_and_known_words_become_one() -> None:
    tokenizer = clip_tokenizer()
    for text in ("", "   ", "\N{FROG FACE} \u05e9\u05dc\u05d5\u05dd \0", "unheard-of words"):
        assert tokenizer(text).input_ids[0] == tokenizer.bos_token_id
    start, *words, end = tokenizer("a cat and a frog").input_ids

    assert (start, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.convert_ids_to_tokens(words) == [
        "a</w>",
        "cat</w>",
        "and</w>",
        "a</w>",
        "frog</w>",
    ]
    assert len(tokenizer("whale").input_ids) > 3


def test_known_words_become_one_t5_token() -> None:
    tokenizer = t5_tokenizer()
    ids = tokenizer("a cat and a frog").input_ids

    assert tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁cat", "▁and", "▁a", "▁frog", "</s>"]
    assert tokenizer.unk_token_id not in tokenizer("Whales, 3 of them!").input_ids
