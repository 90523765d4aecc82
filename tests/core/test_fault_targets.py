"""Faults that the core must survive: targets, words and prompts.

The numbers are those of the project's fault list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from attnctl import AttendAndExcite, HeatMaps, Technique, attach, until
from attnctl.errors import (
    AlreadyAttachedError,
    LayerNotFoundError,
    SchedulerError,
    SettingError,
    UnsupportedModelError,
    WhereError,
    WordNotFoundError,
)
from tests.core.samples import Shift, Temperature
from tests.support.pipelines import PROMPT, build, generate


# 12
def test_a_layer_that_is_not_there_gets_the_nearest_names() -> None:
    wanted = "mid_block.attentions.0.transformer_blocks.0.attn3"
    with pytest.raises(LayerNotFoundError, match=r"attn3.*did you mean.*mid_block.*attn1"):
        attach(build("sd1"), Temperature(where=f"path={wanted}"))


# 13
@dataclass(frozen=True)
class ForLoops(Technique):
    """Needs the loop."""

    name: ClassVar[str] = "for-loops"

    def after_step(self, call: Any) -> None:
        return None


def test_what_a_model_cannot_offer_is_refused_by_the_techniques_name(unknown_pipe: Any) -> None:
    pipe = build("sd1")
    with pytest.raises(UnsupportedModelError, match=r"for-loops.*attach to the pipeline"):
        attach(pipe.unet, ForLoops())
    with pytest.raises(UnsupportedModelError, match=r"heat-maps needs .*supported"):
        attach(unknown_pipe, HeatMaps(where="all"))
    with pytest.raises(UnsupportedModelError, match="no denoiser with attention"):
        attach(pipe.vae.decoder.conv_in, Temperature())


@pytest.mark.parametrize(
    ("target", "techniques", "message"),
    [
        (StableDiffusionPipeline, Temperature(), r"not the class StableDiffusionPipeline"),
        (None, Temperature, r"add parentheses|not iterable"),
        (None, [Temperature], r"add parentheses"),
        (None, ["temperature"], r"takes techniques"),
    ],
)
def test_what_is_no_pipeline_or_no_technique_is_refused(
    target: Any, techniques: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        attach(build("sd1") if target is None else target, techniques)


# 14
def test_a_head_that_is_not_there_is_refused_with_layer_and_count() -> None:
    with pytest.raises(WhereError, match=r"head 2 of .*attn1, which has 2 heads \(0-1\)"):
        attach(build("sd1"), Temperature(where="mid:self:heads=0+2"))


# 15
@pytest.mark.parametrize("technique", [AttendAndExcite, HeatMaps])
def test_a_word_that_is_not_in_the_prompt_is_refused_before_the_first_forward(
    technique: type[Technique],
) -> None:
    pipe = build("sd1")
    forwards: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *call: forwards.append(1))
    with (
        attach(pipe, technique(["whale"])),  # pyright: ignore[reportCallIssue]
        pytest.raises(WordNotFoundError, match=r"'whale' is not in the prompt.*frog"),
    ):
        generate(pipe)

    assert forwards == []


# 15
def test_a_word_of_several_tokens_counts_by_its_last_one_and_by_its_first_occurrence() -> None:
    pipe = build("sd1")
    prompt = "a whale and a cat and a whale"
    spelled = pipe.tokenizer("whale", add_special_tokens=False).input_ids
    settings = {"steps": until(1), "thresholds": {}, "resolution": 8}
    with attach(pipe, AttendAndExcite(["whale"], **settings)):  # pyright: ignore[reportArgumentType]
        by_word = generate(pipe, prompt)
    position = 1 + len(spelled)  # BOS, "a", then the pieces
    with attach(pipe, AttendAndExcite([position], **settings)):  # pyright: ignore[reportArgumentType]
        assert torch.equal(by_word, generate(pipe, prompt))
    assert len(spelled) > 1


# 15
def test_a_word_that_was_cut_off_is_refused_and_the_cut_is_named() -> None:
    pipe = build("sd1")
    with (
        attach(pipe, HeatMaps(["frog"])),
        pytest.raises(WordNotFoundError, match=r"'frog'.*75 .*cut off"),
    ):
        generate(pipe, "a cat " * 60 + "frog")


# 16
@pytest.mark.parametrize(
    "prompt",
    ["", "   ", "\N{FROG FACE} \u05e9\u05dc\u05d5\u05dd", "a\0cat", "cat " * 25_000],
    ids=["empty", "blank", "emoji", "nul", "100 kB"],
)
def test_any_prompt_works(prompt: str) -> None:
    pipe = build("sd1")
    plain = generate(pipe, prompt, steps=1)
    excite = AttendAndExcite([2], thresholds={}, resolution=8)
    with attach(pipe, [HeatMaps(), excite]) as session:
        assert generate(pipe, prompt, steps=1).isfinite().all()
        assert session.maps.token(1).isfinite().all()
    with attach(pipe, HeatMaps()):
        assert torch.equal(plain, generate(pipe, prompt, steps=1))


# 17
def test_each_prompt_of_a_batch_has_its_own_words() -> None:
    pipe = build("sd1")
    prompts = ["a cat and a frog", "a frog and a cat"]
    with attach(pipe, HeatMaps()) as session:
        generate(pipe, prompts)
        both = [session.maps.raw("cat", item=i) for i in range(2)]
        assert torch.equal(both[1], session.maps.token(5, item=1, absolute=True))
        for i, prompt in enumerate(prompts):
            generate(pipe, prompt, seed=i)
            assert torch.allclose(session.maps.raw("cat"), both[i], atol=1e-5)


# 18
def test_embeddings_instead_of_prompts_are_refused_where_words_are_wanted() -> None:
    pipe = build("sd1")
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    options: dict[str, Any] = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "num_inference_steps": 1,
        "output_type": "latent",
    }
    with attach(pipe, HeatMaps()) as session:
        generate(pipe)
        pipe(**options)
        assert session.maps.token(2).isfinite().all()
        with pytest.raises(WordNotFoundError, match=r"token\(position\)"):
            session.maps.word("cat")
    with attach(pipe, HeatMaps(["cat"])), pytest.raises(WordNotFoundError, match="prompt_embeds"):
        pipe(**options)


# 18
def test_a_negative_prompt_beside_embeddings_is_not_taken_for_the_prompt() -> None:
    pipe = build("sd1")
    embeds, _ = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    with attach(pipe, HeatMaps(["dog"])), pytest.raises(WordNotFoundError, match="prompt_embeds"):
        pipe(prompt_embeds=embeds, negative_prompt="a dog", num_inference_steps=1)


def test_an_earlier_call_that_failed_leaves_no_prompt_behind() -> None:
    pipe = build("sd1")
    with attach(pipe, HeatMaps()) as session:
        for _ in range(3):
            with pytest.raises(ValueError, match="timesteps"):
                generate(pipe, "a red dog", timesteps=[3], sigmas=[0.5])
            generate(pipe, PROMPT)
            assert session.maps.tokens()[1:3] == ["a</w>", "cat</w>"]


def test_a_scheduler_that_was_replaced_is_an_error_with_advice() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(SchedulerError, match="scheduler first, then attach"):
            generate(pipe)


def test_a_model_that_was_replaced_is_an_error_with_advice() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()):
        pipe.unet = build("sd1", seed=1).unet
        with pytest.raises(SchedulerError, match="detach and attach again"):
            generate(pipe)


def test_settings_of_a_session_cannot_change_with_a_second_one() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()), pytest.raises(AlreadyAttachedError, match="first session"):
        attach(pipe, Shift(), branches=("cond",))
    with pytest.raises(SettingError, match="unknown kernel 'flsh'"):
        attach(pipe, Shift(), kernel="flsh")
