"""Latte, Allegro, Kandinsky 5, ConsisID, Cosmos: grids, places and texts against their tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import (
    Cosmos2TextToImagePipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from attnctl import APG, PAG, HeatMaps, attach
from attnctl.calls import AttentionCall
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw, wake_silent_parameters
from tests.support.pipelines import PROMPT, build, generate
from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import WIDTH, t5_text, t5_tokenizer

GRID, PLACE = (2, 3, 5), (1, 2, 3)
CHANNELS = {"kandinsky5": 4, "consisid": 2}  # axis of the channels, elsewhere 1
NAMES = ["latte", "allegro", "kandinsky5", "consisid", "cosmos"]
TEXT_FIRST = {"consisid": 6}


def inputs_of(name: str) -> dict[str, Any]:
    """The usual inputs with latents that are no square."""
    inputs, axis = DENOISERS[name].inputs(), CHANNELS.get(name, 1)
    sizes = [2, GRID[0], 2 * GRID[1], 2 * GRID[2]]
    sizes.insert(axis, inputs["hidden_states"].shape[axis])
    inputs["hidden_states"] = Draw(6).normal(*sizes)
    if name == "kandinsky5":
        inputs["visual_rope_pos"] = [torch.arange(size) for size in GRID]
    return inputs


def moved(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with another value at one place of the grid."""
    latents, (frame, row, column) = inputs["hidden_states"].clone(), PLACE
    cells = latents.movedim(CHANNELS.get(name, 1), -1)
    cells[:, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 5.0
    return {**inputs, "hidden_states": latents}


def calls_of(name: str, inputs: dict[str, Any]) -> list[AttentionCall]:
    watch, model = Watch(needs_layout=True), DENOISERS[name].build()
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    return watch.seen


def changed(before: Tensor, after: Tensor, axes: tuple[int, ...]) -> list[int]:
    return (before - after).abs().sum(dim=axes).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", NAMES)
def test_layouts_fit_the_tokens_of_every_site(name: str) -> None:
    for call in calls_of(name, inputs_of(name)):
        layout = call.layout
        assert layout is not None
        assert (layout.grid, layout.is_video) == (GRID, True)
        tokens = {"rows": math.prod(GRID), "frames": math.prod(GRID[1:]), "positions": GRID[0]}
        folds = {"rows": 1, "frames": GRID[0], "positions": math.prod(GRID[1:])}
        assert call.fold == folds[layout.fold]
        assert layout.image.stop - layout.image.start == tokens[layout.fold]
        assert call.query.shape[2] == layout.image.stop
        if call.site.kind == "cross":
            assert layout.text == slice(0, call.key.shape[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_change_at_one_place_changes_exactly_its_token(name: str) -> None:
    inputs = inputs_of(name)
    first, other = (calls_of(name, i)[0] for i in (inputs, moved(name, inputs)))
    frame, row, column = PLACE
    assert first.layout is not None
    if first.layout.fold == "frames":
        assert changed(first.query, other.query, (1, 2, 3)) == [1, 3]  # the frame of either row
        frame = 0
    token = (frame * GRID[1] + row) * GRID[2] + column
    assert changed(first.query, other.query, (0, 1, 3)) == [TEXT_FIRST.get(name, 0) + token]


@pytest.mark.parametrize("name", NAMES)
def test_text_lies_where_the_layout_says(name: str) -> None:
    inputs = inputs_of(name)
    worded = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
    pairs = zip(calls_of(name, inputs), calls_of(name, worded), strict=True)
    call, other = next(p for p in pairs if p[0].layout and p[0].layout.text is not None)
    assert call.layout is not None
    assert call.layout.text is not None
    seen = list(range(call.layout.text.start, call.layout.text.stop))
    assert changed(call.key, other.key, (0, 1, 3)) == seen


def test_latte_has_words_and_both_branches_in_its_pipeline() -> None:
    pipe, watch = build("latte"), Watch(needs_layout=True)
    plain = generate(pipe)
    with attach(pipe, [watch, HeatMaps(["cat"])]) as session:
        assert torch.equal(generate(pipe), plain)
        heat = session.maps.word("cat", frame=1)
    assert heat.shape == watch.seen[0].layout.grid[1:]  # pyright: ignore[reportOptionalMemberAccess]
    rows = (("uncond", 0), ("cond", 0))
    assert set(map(frozenset, watch.rows_by_step.values())) == {frozenset({rows})}
    with attach(pipe, PAG(scale=2.0, where="self")):
        assert (generate(pipe) - plain).abs().max() > 1e-4


# --- the real pipeline of Cosmos 2 ------------------------------------------------------------


class Harmless:
    """Stands for the guardrail, which is a package of its own and finds nothing here."""

    def to(self, device: Any) -> Harmless:
        return self

    def check_text_safety(self, prompt: str) -> bool:
        return True


def cosmos2() -> Cosmos2TextToImagePipeline:
    """Cosmos 2, a picture from words, at toy size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            mlp_ratio=2,
            text_embed_dim=WIDTH,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            patch_size=(1, 2, 2),
            concat_padding_mask=False,
            extra_pos_embed_type=None,
        )
        wake_silent_parameters(transformer, 1.0)
        pipe = Cosmos2TextToImagePipeline(
            text_encoder=t5_text(),
            tokenizer=t5_tokenizer(),
            transformer=transformer.eval(),
            vae=None,
            scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
            safety_checker=Harmless(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Cosmos2TextToImagePipeline, scale: float = 3.0) -> Tensor:
    """Latents of a picture, ``(1, 4, 1, 6, 8)``."""
    call: dict[str, Any] = {"height": 48, "width": 64, "num_inference_steps": 3}
    call |= {"max_sequence_length": 16, "output_type": "latent", "generator": seeded(0)}
    return pipe(PROMPT, guidance_scale=scale, **call)[0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_each_branch_of_cosmos_has_a_call_of_its_own(scale: float) -> None:
    pipe, watch = cosmos2(), Watch(needs_layout=True)
    plain = paint(pipe, scale)
    with attach(pipe, [watch, HeatMaps(["cat"])]) as session:
        assert torch.equal(paint(pipe, scale), plain)
        assert session.maps.word("cat").shape == (3, 4)
    rows = {(("cond", 0),), (("uncond", 0),)} if scale > 1 else {(("cond", 0),)}
    assert set(map(frozenset, watch.rows_by_step.values())) == {frozenset(rows)}


def test_guidance_is_added_to_that_of_cosmos_and_its_scale_is_known() -> None:
    pipe = cosmos2()
    plain = paint(pipe)
    with attach(pipe, PAG(scale=2.0, where="self,layers=1")):
        assert (paint(pipe) - plain).abs().max() > 1e-4
    with attach(pipe, APG(eta=1.0, norm_threshold=0.0)):  # the pipeline's own formula
        assert (paint(pipe) - plain).abs().max() < 1e-4 * plain.abs().max()
