"""Z-Image: a list of pictures and a list of texts instead of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from attnctl import (
    APG,
    AttendAndExcite,
    HeatMaps,
    SoftPAG,
    SparseAttention,
    attach,
    locate_tokens,
)
from attnctl.calls import AttentionCall
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw, wake_silent_parameters
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.language import qwen_text, qwen_tokenizer
from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import WIDTH

HEIGHT, WIDE = 3, 5
CELLS, TEXT = HEIGHT * WIDE, 32  # text begins at a multiple of 32


def inputs_of() -> dict[str, Any]:
    """The usual inputs with latents that are no square."""
    inputs, draw = DENOISERS["z_image"].inputs(), Draw(4)
    return {**inputs, "x": [draw.normal(4, 1, 2 * HEIGHT, 2 * WIDE) for _ in range(2)]}


def calls_of(inputs: dict[str, Any]) -> list[AttentionCall]:
    watch, model = Watch(needs_layout=True), DENOISERS["z_image"].build()
    with attach(model, watch, branches=("cond", "uncond")), torch.no_grad():
        model(**inputs)
    return watch.seen


def changed(before: Tensor, after: Tensor) -> list[int]:
    return (before - after).abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()


def test_image_and_text_lie_where_the_layout_says() -> None:
    inputs = inputs_of()
    latents = [picture.clone() for picture in inputs["x"]]
    for picture in latents:
        picture[:, :, 2:4, 6:8] += 5.0  # row 1, column 3
    texts = [text + 1 for text in inputs["cap_feats"]]
    before = calls_of(inputs)
    moved, worded = calls_of({**inputs, "x": latents}), calls_of({**inputs, "cap_feats": texts})
    first, joint = before[0], next(call for call in before if call.site.kind == "joint")
    assert first.layout is not None
    assert (first.site.kind, first.layout.text) == ("self", None)
    assert changed(first.query, moved[0].query) == [WIDE + 3]
    assert joint.layout is not None
    assert (joint.layout.grid, joint.layout.image) == ((1, HEIGHT, WIDE), slice(0, CELLS))
    assert joint.layout.text == slice(TEXT, TEXT + 6)
    other = next(call for call in worded if call.site.kind == "joint")
    assert set(changed(joint.key, other.key)) >= set(range(TEXT, TEXT + 6))
    assert min(changed(joint.key, other.key)) == TEXT


def z_image() -> ZImagePipeline:
    """Z-Image with a text encoder of two layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = qwen_tokenizer()
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[256, 32, 32],
        )
        wake_silent_parameters(transformer, 2.0)
        pipe = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None,
            text_encoder=qwen_text(tokenizer),
            tokenizer=tokenizer,
            transformer=transformer.eval(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: ZImagePipeline, prompt: Any = PROMPT, scale: float = 3.0, **more: Any) -> Tensor:
    """Latents of pictures, ``(n, 4, 6, 10)``."""
    call: dict[str, Any] = {"height": 48, "width": 80, "num_inference_steps": 3}
    call |= {"max_sequence_length": 64, "output_type": "latent", "generator": seeded(0), **more}
    prompt = list(prompt) if isinstance(prompt, list) else prompt  # the pipeline writes into it
    return pipe(prompt, guidance_scale=scale, **call)[0]


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("prompts", [PROMPT, [PROMPT, "a dog"]])
def test_the_conditional_branch_comes_first(prompts: Any, scale: float) -> None:
    pipe, watch = z_image(), Watch(needs_layout=True)
    plain = paint(pipe, prompts, scale)
    before = fingerprint(pipe.transformer)
    with attach(pipe, watch):
        assert torch.equal(paint(pipe, prompts, scale), plain)
    assert differences(before, fingerprint(pipe.transformer)) == []
    items = range(2 if isinstance(prompts, list) else 1)
    rows = tuple((b, i) for b in ("cond", "uncond")[: 2 if scale else 1] for i in items)
    assert watch.rows_by_step == {step: {rows} for step in range(3)}


def test_words_lie_behind_the_chat_in_front_of_the_prompt() -> None:
    pipe = z_image()
    (cat,) = locate_tokens(pipe, PROMPT, "cat")
    chat = pipe.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True
    )
    ids = pipe.tokenizer(chat).input_ids
    tokens = pipe.tokenizer.convert_ids_to_tokens([ids[place] for place in cat.positions])
    assert tuple(tokens) == cat.tokens
    with attach(pipe, HeatMaps(["cat"])) as session:
        paint(pipe)
        assert session.maps.positions("cat") == list(cat.positions)
        assert session.maps.word("cat").shape == (HEIGHT, WIDE)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_perturbed_row_joins_the_lists(scale: float) -> None:
    pipe = z_image()
    plain = paint(pipe, [PROMPT, "a dog"], scale)
    with attach(pipe, SoftPAG(scale=2.0, where="joint,layers=1")) as session:
        guided = paint(pipe, [PROMPT, "a dog"], scale)
        assert "soft-pag" in str(session.report())
    assert (guided - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    assert torch.equal(paint(pipe, [PROMPT, "a dog"], scale), plain)


def test_its_scale_counts_from_the_conditional_prediction() -> None:
    pipe = z_image()
    plain = paint(pipe)
    with attach(pipe, APG(eta=1.0, norm_threshold=0.0)):  # the pipeline's own formula
        assert (paint(pipe) - plain).abs().max() < 1e-4 * plain.abs().max()


def test_latents_are_moved_and_attention_is_made_sparse() -> None:
    pipe = z_image()
    plain = paint(pipe)
    exciting = AttendAndExcite(["cat"], where="joint", thresholds={}, scale_factor=20)
    with attach(pipe, exciting):
        assert (paint(pipe) - plain).abs().max() > 1e-5
    sparse = SparseAttention(sparsity=0.5, where="joint", block=16, least_tokens=8, steps="always")
    with attach(pipe, sparse):
        assert (paint(pipe) - plain).abs().max() > 1e-5
