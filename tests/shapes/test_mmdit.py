"""The joint transformer's training gives it the function that the pipeline later computes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from attnctl.shapes import WorldSettings
from attnctl.shapes.export import trained_parts
from attnctl.shapes.latents import encode_scenes
from attnctl.shapes.loop import LoopSettings
from attnctl.shapes.mmdit import (
    TEXT_TOKENS,
    build_mmdit_pipeline,
    build_text_encoders,
    build_transformer,
    encode_tokens,
)
from attnctl.shapes.model import build_vae
from attnctl.shapes.text import build_tokenizer
from attnctl.shapes.train_mmdit import (
    CountedJointAttention,
    FlowSettings,
    compile_parts,
    draw_counts,
    draw_sigmas,
    flow_loop,
)

TEXT = "a red circle and a blue square"


def shaken(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """Move every weight: modulations start at zero, which hides much."""
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return transformer


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXT_TOKENS)
    transformer = shaken(build_transformer())
    made = build_mmdit_pipeline(build_vae(), transformer, build_text_encoders(tokenizer), tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


def encoders(pipeline: StableDiffusion3Pipeline) -> Any:
    return pipeline.text_encoder, pipeline.text_encoder_2


@torch.no_grad()
def trained_inputs(pipeline: StableDiffusion3Pipeline, text: str) -> Any:
    tokens = pipeline.tokenizer([text], padding="max_length", return_tensors="pt").input_ids
    return encode_tokens(encoders(pipeline), tokens)


@torch.no_grad()
def test_text_is_what_the_pipeline_makes_of_it(pipeline: StableDiffusion3Pipeline) -> None:
    hidden, pooled = trained_inputs(pipeline, TEXT)
    given, _, given_pooled, _ = pipeline.encode_prompt(
        TEXT, None, None, do_classifier_free_guidance=False
    )
    assert torch.equal(given[:, : TEXT_TOKENS + 1], hidden)
    assert not given[:, TEXT_TOKENS:].any()
    assert torch.equal(given_pooled, pooled)


@pytest.mark.parametrize("count", [1, 256])
@torch.no_grad()
def test_one_counted_token_is_as_good_as_many(
    pipeline: StableDiffusion3Pipeline, count: int
) -> None:
    hidden, pooled = trained_inputs(pipeline, TEXT)
    many = torch.cat([hidden[:, :TEXT_TOKENS], torch.zeros(1, count, hidden.shape[-1])], dim=1)
    latents, time = torch.randn(1, 4, 16, 16), torch.tensor([400.0])
    model, original = pipeline.transformer, dict(pipeline.transformer.attn_processors)
    expected = model(latents, many, pooled, time).sample
    counted = CountedJointAttention()
    counted.bias = torch.tensor(float(count)).log().view(1, 1, 1)
    model.set_attn_processor(counted)
    merged = model(latents, hidden, pooled, time).sample
    model.set_attn_processor(original)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)


def test_a_noun_knows_its_colour_and_no_other_object(pipeline: StableDiffusion3Pipeline) -> None:
    def noun(text: str) -> torch.Tensor:
        return trained_inputs(pipeline, text)[0][0, 7]  # begin, a, red, circle, and, a, blue, NOUN

    here = noun(TEXT)
    assert torch.allclose(noun("a green cross and a blue square"), here, atol=1e-4)
    assert (noun("a red circle and a green square") - here).abs().max() > 0.05


def test_pooled_vector_knows_no_word(pipeline: StableDiffusion3Pipeline) -> None:
    pooled = [trained_inputs(pipeline, f"a {kind}")[1] for kind in ("red circle", "blue cross")]
    assert torch.allclose(*pooled, atol=1e-3)  # words differ by 4 in the hidden states


def test_a_few_steps_of_training_change_what_is_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TEXT_TOKENS)
    transformer, both = build_transformer(), build_text_encoders(tokenizer)
    frozen = both[0].text_model.encoder.layers[0].self_attn.q_proj.weight.clone()
    cache = encode_scenes(build_vae(), WorldSettings(), 8, torch.Generator().manual_seed(1))
    schedule = LoopSettings(minutes=None, steps=3, warmup_steps=2)
    loop = flow_loop(transformer, both, tokenizer, cache, FlowSettings(batch=4), schedule, tmp_path)
    loop.run()
    assert transformer.proj_out.weight.any()
    assert torch.equal(frozen, both[0].text_model.encoder.layers[0].self_attn.q_proj.weight)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(TEXT_TOKENS)
    cache = encode_scenes(build_vae(), WorldSettings(), 8, torch.Generator().manual_seed(1))

    def first_loss(compiled: bool) -> float:
        torch.manual_seed(0)
        transformer, both = shaken(build_transformer()), build_text_encoders(tokenizer)
        del transformer.transformer_blocks[1:]
        if compiled:
            compile_parts(transformer)
        settings, schedule = FlowSettings(batch=2), LoopSettings(minutes=None, steps=1)
        loop = flow_loop(transformer, both, tokenizer, cache, settings, schedule, tmp_path)
        return float(loop.loss(0.0, torch.Generator().manual_seed(2))[0].detach())

    assert first_loss(True) == pytest.approx(first_loss(False), rel=1e-3)


def test_training_can_begin_with_the_weights_of_a_model(
    pipeline: StableDiffusion3Pipeline, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer(TEXT_TOKENS)
    transformer, both = build_transformer(), build_text_encoders(tokenizer)
    cache = encode_scenes(build_vae(), WorldSettings(), 2, torch.Generator().manual_seed(1))
    schedule = LoopSettings(minutes=None, steps=1)
    loop = flow_loop(transformer, both, tokenizer, cache, FlowSettings(), schedule, tmp_path)
    loop.start_from(trained_parts("shapes-mmdit", pipeline).state_dict())
    trained = pipeline.transformer.state_dict()
    assert all(torch.equal(v, trained[k].float()) for k, v in transformer.state_dict().items())
    assert torch.equal(
        loop.average["transformer.proj_out.weight"], trained["proj_out.weight"].float()
    )


def test_noise_levels_and_counts_cover_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    sigmas = draw_sigmas(4000, generator)
    assert ((sigmas > 0) & (sigmas < 1)).all()
    assert abs(sigmas.median() - 0.5) < 0.01
    assert abs(torch.logit(sigmas).std() - 1) < 0.05  # logit-normal with deviation 1
    counts = draw_counts(4000, generator)
    assert counts.min() == 1
    assert counts.max() == 256
    assert 0.35 < (counts == 256).float().mean() < 0.45
    assert ((counts > 1) & (counts < 256)).any()
