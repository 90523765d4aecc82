"""SoftPAG on four families against whole maps, a separate forward and a combination by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl.calls import AttentionCall, Layout, Pass, Row, Step
from attnctl.kernels import attention
from attnctl.sites import Site
from attnctl.techniques.soft_pag import SoftPAG
from tests.support.pipelines import build, generate
from tests.support.pipelines.text import T5_LENGTH
from tests.techniques.masked_reference import Reference
from tests.techniques.perturbed_models import MODELS, Model

CLOSE = 2e-6  # of the largest latent: a few roundings of fp32

SETTINGS = {
    "identity": {},
    "half": {"strength": 0.5},
    "uniform": {"target": "uniform"},
    "half uniform": {"target": "uniform", "strength": 0.5},
    "query-mean": {"target": "query-mean"},
    "image-rows": {"form": "image-rows"},
    "half image-rows": {"form": "image-rows", "strength": 0.5},
    "uniform image-rows": {"form": "image-rows", "target": "uniform"},
    "query-mean image-rows": {"form": "image-rows", "target": "query-mean", "strength": 0.5},
    "image-block": {"form": "image-block"},
    "half image-block": {"form": "image-block", "strength": 0.5},
    "one head": {"heads": (1,)},
    "half of one head, image-block": {"heads": (0,), "form": "image-block", "strength": 0.5},
}


def plain(model: Model, **changes: Any) -> Tensor:
    return generate(build(model.pipeline), **model.arguments, **changes)


def ours(model: Model, settings: dict[str, Any], **changes: Any) -> Tensor:
    chosen = dict(settings)
    where = model.selector(chosen.pop("heads", None))
    pipe = build(model.pipeline)
    with attnctl.attach(pipe, [SoftPAG(scale=2.0, where=where, **chosen)]):
        return generate(pipe, **model.arguments, **changes)


def theirs(model: Model, settings: dict[str, Any], **changes: Any) -> Tensor:
    pipe = build(model.pipeline)
    with model.reference(**settings).installed(pipe.transformer):
        return generate(pipe, **model.arguments, **changes)


def assert_same_effect(mine: Tensor, wanted: Tensor, untouched: Tensor) -> None:
    allowed = CLOSE * float(untouched.abs().max())
    assert (wanted - untouched).abs().max() > 100 * allowed
    assert (mine - wanted).abs().max() < allowed


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_that_of_whole_maps_and_a_forward_of_their_own(
    name: str, settings: str
) -> None:
    model, chosen = MODELS[name], SETTINGS[settings]
    assert_same_effect(ours(model, chosen), theirs(model, chosen), plain(model))


@pytest.mark.parametrize("name", ["sd3 dual, both", "flux both", "cogvideox"])
def test_several_prompts_are_each_guided_by_their_own_row(name: str) -> None:
    model, prompts = MODELS[name], ["a cat and a frog", "a red dog"]
    settings = {"strength": 0.7, "form": "image-rows"}
    mine, wanted, untouched = (
        side(prompt=prompts)
        for side in (
            partial(ours, model, settings), partial(theirs, model, settings), partial(plain, model)
        )
    )  # fmt: skip
    assert_same_effect(mine, wanted, untouched)


MASKED = {
    "flux both": "joint_attention_kwargs",
    "flux single": "joint_attention_kwargs",
    "cogvideox": "attention_kwargs",
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", MASKED)
def test_padding_of_the_text_is_kept_out_of_every_target(name: str, settings: str) -> None:
    model, chosen = MODELS[name], SETTINGS[settings]
    changes: dict[str, Any] = {MASKED[name]: {"attention_mask": _padding(model)}}
    if model.is_guided:  # this pipeline hands one mask to both branches
        model = replace(model, is_guided=False)
        changes["guidance_scale"] = 1.0
    untouched = plain(model, **changes)
    assert not torch.allclose(untouched, plain(model, **{**changes, MASKED[name]: None}), atol=1e-3)
    assert_same_effect(ours(model, chosen, **changes), theirs(model, chosen, **changes), untouched)


def _padding(model: Model) -> Tensor:
    """A key mask that leaves out the last half of the text: boolean, for CogVideoX additive."""
    tokens = {"flux": T5_LENGTH + 64, "cogvideox": T5_LENGTH + 3 * 4 * 4}[model.pipeline]
    allowed = torch.ones(1, 1, 1, tokens, dtype=torch.bool)
    allowed[..., T5_LENGTH // 2 : T5_LENGTH] = False
    if model.pipeline == "flux":
        return allowed
    return torch.zeros(1, 1, tokens).masked_fill(~allowed[0], -10000.0)


def _random_masks(batch: int, tokens: int, image: slice) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    keys = torch.rand(batch, 1, 1, tokens, generator=draw) > 0.4
    pairs = torch.rand(batch, 1, tokens, tokens, generator=draw) > 0.4
    pairs[:, :, image.start + 1] = False  # a query that may attend to nothing
    pairs[:, :, -1] = False
    bias = torch.randn(batch, 3, tokens, tokens, generator=draw)
    return {
        "keys": keys,
        "keys, additive": torch.zeros(keys.shape).masked_fill(~keys, -10000.0),
        "pairs": pairs,
        "bias": bias.masked_fill(torch.rand(bias.shape, generator=draw) > 0.7, -torch.inf),
        "two axes": pairs[0, 0],
    }


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["keys", "keys, additive", "pairs", "bias", "two axes"])
@pytest.mark.parametrize("image", [slice(0, 9), slice(5, 14)], ids=["image first", "text first"])
def test_any_mask_holds_in_every_target(kind: str, settings: str, image: slice) -> None:
    chosen = SETTINGS[settings]
    draw = torch.Generator().manual_seed(5)
    query, key, value = (torch.randn(2, 3, 14, 8, generator=draw) for _ in range(3))
    mask = _random_masks(2, 14, image)[kind]
    text = slice(9, 14) if image.start == 0 else slice(0, 5)
    call = AttentionCall(
        Site("transformer", "attn", "joint", heads=3),
        Layout((1, 3, 3), image, text),
        Step(0, 1),
        Pass("main", 0, (Row("cond", 0), Row("cond", 0, "perturbed"))),
        *(query, key, value, mask, 8**-0.5),
    )
    call.heads = chosen.get("heads")
    own = attention(query, key, value, mask)[0]
    technique = SoftPAG(**{k: v for k, v in chosen.items() if k != "heads"})
    out = technique.edit_output(call, own)
    is_image = torch.zeros(14, dtype=torch.bool)
    is_image[image] = True
    reference = Reference((), text_first=image.start > 0, **chosen)
    wanted = reference.attend(query, key, value, mask, is_image)
    assert torch.equal(out[0], own[0])
    assert torch.allclose(out[1], wanted[1], atol=2e-6)
    assert not torch.allclose(out[1], own[1], atol=1e-2)
