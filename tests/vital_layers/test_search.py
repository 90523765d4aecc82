"""The search for vital layers on a tiny joint transformer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import attnctl
from attnctl.errors import AttnctlError, SettingError, UnsupportedModelError
from attnctl.vital_layers import VitalLayers
from attnctl.vital_layers.bypass_search import Found, SearchSettings, search
from attnctl.vital_layers.bypassed_blocks import BypassedBlocks
from attnctl.vital_layers.similarities import find_similarity, shapes_similarity
from tests.support.pipelines import build, generate

SETTINGS = SearchSettings("tiny", top=1, steps=1, guidance=1.0, batch_size=2)
PROMPTS = [{"prompt": "a cat", "seed": 4}, {"prompt": "a red dog", "seed": 5}]


def likeness(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
    """1 minus the mean difference of pixels."""
    pairs = zip(pictures, others, strict=True)
    return [1 - float(np.abs(np.asarray(a, float) - np.asarray(b)).mean()) for a, b in pairs]


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = build("sd3")
    made.set_progress_bar_config(disable=True)
    silence(made.transformer.transformer_blocks[1])
    return made


def silence(block: Any) -> None:
    """Let a block add nothing to its streams."""
    for layer in (
        block.attn.to_out[0],
        block.attn.to_add_out,
        *ends(block.ff),
        *ends(block.ff_context),
    ):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def ends(feed_forward: Any) -> list[Any]:
    return [feed_forward.net[-1]]


@pytest.fixture(scope="module")
def found(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return search(pipe, likeness, PROMPTS, tmp_path_factory.mktemp("whole"), SETTINGS)


def test_a_layer_that_adds_nothing_has_no_vitality(found: Found) -> None:
    vitality = found.layers.vitality
    assert vitality[1] == 0
    assert min(vitality[0], vitality[2]) > 0
    assert found.layers.layers == ((0,) if vitality[0] > vitality[2] else (2,))
    assert VitalLayers.from_file(found.files["layers"]) == found.layers


def test_the_order_of_prompts_does_not_matter(pipe: Any, found: Found, tmp_path: Path) -> None:
    turned = search(pipe, likeness, PROMPTS[::-1], tmp_path, SETTINGS)
    assert turned.layers.vitality == pytest.approx(found.layers.vitality, abs=1e-6)
    assert [one[::-1] for one in turned.similarities] == pytest.approx(
        np.array(found.similarities), abs=1e-6
    )


def test_a_search_that_was_stopped_goes_on_to_the_same_result(
    pipe: Any, found: Found, tmp_path: Path
) -> None:
    calls: list[int] = []

    def failing(pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> list[float]:
        calls.append(len(pictures))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return likeness(pictures, others)

    failing.__module__, failing.__qualname__ = likeness.__module__, likeness.__qualname__
    with pytest.raises(KeyboardInterrupt):
        search(pipe, failing, PROMPTS, tmp_path, SETTINGS)
    again = search(pipe, failing, PROMPTS, tmp_path, SETTINGS, resume=True)
    assert again.similarities == found.similarities
    assert len(calls) == 4  # layer 0; layer 1 that failed; layers 1 and 2
    with pytest.raises(SettingError, match="holds a run already"):
        search(pipe, likeness, PROMPTS, tmp_path, SETTINGS)


@pytest.mark.parametrize(("name", "block"), [("sd3", 2), ("flux", 1), ("flux", 3)])
def test_a_bypassed_block_gives_its_inputs_back(name: str, block: int) -> None:
    pipe = build(name)
    plain = generate(pipe)
    with attnctl.attach(pipe, [BypassedBlocks((block,))]):
        once = generate(pipe)
    with attnctl.attach(pipe, [BypassedBlocks((block, block))]):
        twice = generate(pipe)
    assert torch.equal(once, twice)
    assert not torch.equal(once, plain)
    assert torch.equal(generate(pipe), plain)
    assert torch.equal(once, generate_without(pipe, block))


def generate_without(pipe: Any, block: int) -> Tensor:
    """A run of the model with one block taken out by hand."""
    stacks = [pipe.transformer.transformer_blocks]
    stacks += [s] if (s := getattr(pipe.transformer, "single_transformer_blocks", None)) else []
    for stack in stacks:
        if block < len(stack):
            del stack[block]
            return generate(pipe.__class__(**pipe.components))
        block -= len(stack)
    raise AssertionError


def test_what_does_not_fit_is_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no joint attention"):
        search(build("sd1"), likeness, PROMPTS, tmp_path / "a", SETTINGS)
    with pytest.raises(SettingError, match="exclude each other"):
        SearchSettings(top=1, threshold=0.1)
    with pytest.raises(SettingError, match="no similarity 'shape'"):
        find_similarity("shape")
    with pytest.raises(SettingError, match="no such folder"):
        find_similarity("dino:nowhere")
    with pytest.raises(AttnctlError, match="one finite number a pair"):
        search(pipe, lambda a, b: [float("nan")] * len(a), PROMPTS, tmp_path / "b", SETTINGS)


def test_equal_pictures_of_shapes_are_alike() -> None:
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "white")]
    same, other = shapes_similarity(pictures, [pictures[0], pictures[0]])
    assert same == pytest.approx(1)
    assert other < 0.99


def test_dino_models_compare_embeddings(tmp_path: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    size = {"height": 28, "width": 28}
    BitImageProcessor(size=size, crop_size=size, do_resize=True).save_pretrained(tmp_path)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path)
    similarity = find_similarity(f"dino:{tmp_path}")
    pictures = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    same, other = similarity(pictures, [pictures[0], pictures[0]])
    assert same == pytest.approx(1)
    assert other < same
