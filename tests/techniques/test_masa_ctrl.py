"""MasaCtrl on tiny UNets: shared keys and values, masks, the union, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import attnctl
from attnctl import MasaCtrl
from attnctl.errors import (
    AttnctlError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from tests.support.pipelines import build, generate
from tests.techniques.injection_reference import attend, heads_of, softmax_map
from tests.techniques.paired_runs import SOURCE, both, noise

FULL = np.ones((16, 16))
HALF = np.repeat([[1.0, 0.0]], 16, 0).repeat(8, 1)


def masa(**settings: Any) -> MasaCtrl:
    return MasaCtrl(**({"start_layer": 1, "steps": "0-"} | settings))


@pytest.fixture(scope="module")
def sd1() -> Any:
    return build("sd1")


@pytest.fixture(scope="module")
def plain(sd1: Any) -> Tensor:
    return both(sd1)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"union": True},
        {"mask_words": [["cat"], ["dog"]]},
        {"source_mask": HALF, "target_mask": HALF.T},
        {"steps": "0-100% ramp 1..0.5"},
    ],
    ids=["plain", "union", "words", "masks", "ramp"],
)
def test_the_target_changes_and_the_source_does_not_notice(
    name: str, settings: dict[str, Any]
) -> None:
    pipe = build(name)
    alone, edited = both(pipe), both(pipe, masa(**settings))
    assert torch.equal(edited[0], alone[0])
    assert torch.isfinite(edited).all()
    assert (edited[1] - alone[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "technique",
    [masa(steps="9-"), masa(steps="0-0"), masa(steps=attnctl.ramp(0.0, 0.0))],
    ids=["window behind the run", "empty window", "strength 0"],
)
def test_off_is_two_plain_rows_bit_for_bit(sd1: Any, plain: Tensor, technique: Any) -> None:
    assert torch.equal(both(sd1, technique), plain)


def test_equal_prompts_give_equal_pictures_bit_for_bit(sd1: Any) -> None:
    edited = both(sd1, masa(), target=SOURCE)
    assert torch.equal(edited[1], edited[0])
    union = both(sd1, masa(union=True), target=SOURCE)
    assert torch.allclose(union[1], union[0], atol=1e-4)


def test_full_masks_equal_the_plain_form(sd1: Any) -> None:
    masked = both(sd1, masa(source_mask=FULL, target_mask=FULL))
    assert torch.equal(masked, both(sd1, masa()))


@pytest.mark.parametrize("union", [False, True])
def test_a_layer_equals_loops_in_float64(sd1: Any, union: bool) -> None:
    """The first self-attention of the first step, from what its projections give."""
    attention = sd1.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    names = ("to_q", "to_k", "to_v")
    seen = {name: list[Tensor]() for name in (*names, "out")}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda _m, _a, out, name=name: seen[name].append(out.clone())
        )
        for name in names
    ]
    hooks.append(
        attention.to_out[0].register_forward_hook(
            lambda _m, args, _o: seen["out"].append(args[0].clone())
        )
    )
    both(sd1, masa(start_layer=0, union=union), steps=1)
    for hook in hooks:
        hook.remove()
    for own, source in ((1, 0), (3, 2)):  # each branch looks into its own source
        query = heads_of(seen["to_q"][0][own], 2)
        key, value = (heads_of(seen[n][0][source], 2) for n in ("to_k", "to_v"))
        if union:
            more = (heads_of(seen[n][0][own], 2) for n in ("to_k", "to_v"))
            key, value = (torch.cat(pair, 1) for pair in zip((key, value), more, strict=True))
        for head in range(2):
            probs = softmax_map(query[head, :6], key[head], query.shape[-1] ** -0.5)
            ours = heads_of(seen["out"][0][own], 2)[head, :6]
            assert (ours - attend(probs, value[head])).abs().max() < 2e-6


def test_early_layers_and_steps_stay_plain(sd1: Any) -> None:
    first = sd1.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_out[0]
    last = sd1.unet.up_blocks[1].attentions[-1].transformer_blocks[0].attn1.to_out[0]
    seen: dict[str, list[Tensor]] = {"first": [], "last": []}
    hooks = [
        layer.register_forward_hook(lambda _m, args, _o, n=n: seen[n].append(args[0].clone()))
        for n, layer in (("first", first), ("last", last))
    ]
    both(sd1, steps=2)
    both(sd1, masa(start_layer=2, steps="1-"), steps=2)
    for hook in hooks:
        hook.remove()
    same = {
        n: [torch.equal(a, b) for a, b in zip(x[:2], x[2:], strict=True)] for n, x in seen.items()
    }
    assert same == {"first": [True, True], "last": [True, False]}


def test_masks_of_files_pictures_and_arrays_are_the_same(sd1: Any, tmp_path: Path) -> None:
    picture = Image.fromarray((HALF * 255).astype(np.uint8))
    picture.save(tmp_path / "mask.png")
    forms = (HALF, torch.from_numpy(HALF), picture, str(tmp_path / "mask.png"), HALF > 0.5)
    edited = [both(sd1, masa(source_mask=f, target_mask=f), steps=1) for f in forms]
    assert all(torch.equal(edited[0], other) for other in edited[1:])
    named = masa(source_mask=str(tmp_path / "mask.png"), target_mask=HALF)
    assert named.settings()["source_mask"].endswith("mask.png")
    assert named.settings()["target_mask"] == "mask of 16 x 16"


def test_masks_of_words_are_made_anew_in_each_step(sd1: Any, plain: Tensor) -> None:
    deep = build("sd1_deep")
    words = both(deep, masa(start_layer=3, mask_words=["frog"], mask_grid=8), steps=2)
    without = both(deep, masa(start_layer=3), steps=2)
    assert not torch.allclose(words[1], without[1], atol=1e-6)
    everything = both(
        deep, masa(start_layer=3, mask_words=["frog"], mask_grid=8, mask_threshold=0.0), steps=2
    )
    assert torch.equal(everything, without)


@pytest.mark.parametrize(
    ("technique", "prompts", "error", "text"),
    [
        (masa(), ["a cat"], SettingError, "one picture"),
        (masa(mask_words=["bird"]), ["a cat", "a dog"], WordNotFoundError, "mask_words: 'bird'"),
    ],
)
def test_runs_that_do_not_fit_are_refused_before_the_first_step(
    sd1: Any, technique: Any, prompts: list[str], error: type[AttnctlError], text: str
) -> None:
    entered: list[int] = []
    hook = sd1.unet.conv_in.register_forward_hook(lambda *_: entered.append(1))
    with attnctl.attach(sd1, [technique]), pytest.raises(error, match=text):
        generate(sd1, prompts, latents=noise(sd1, len(prompts)))
    hook.remove()
    assert not entered


def test_a_model_without_such_layers_is_refused_when_it_is_attached(sd1: Any) -> None:
    with pytest.raises(NoSiteError, match="start_layer=10 on; this model has layers 0 to"):
        attnctl.attach(sd1, [MasaCtrl()])
    with pytest.raises(UnsupportedModelError, match="stable-flow"):
        attnctl.attach(build("flux"), [masa()])
    with pytest.raises(NoSiteError, match="no maps are 7 cells high"):
        both(sd1, masa(mask_words=["frog"], mask_grid=7))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"source_mask": FULL}, "together"),
        ({"union": True, "mask_words": ["cat"]}, "exclude each other"),
        ({"source_mask": FULL[0], "target_mask": FULL}, "array .height, width."),
        ({"mask_threshold": -1}, "from 0 to 1"),
        ({"target": 0}, "must be different pictures"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        masa(**settings)
