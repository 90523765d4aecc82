"""HeadRouter against plain loops, and its invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import HeadRouter
from tests.support.pipelines import build
from tests.techniques.head_router_reference import Plain, sigmoid
from tests.techniques.pair_runs import (
    PAIR,
    PAIRED,
    WAYS,
    Outputs,
    latents_by_step,
    pair_run,
    predictions,
)

HEADS_ALONE: dict[str, Any] = {"text_blend": 0.0, "upsilon": 0.0}
TEXT_ALONE: dict[str, Any] = {"gamma": 0.0, "upsilon": 0.0}
IMAGE_ALONE: dict[str, Any] = {"gamma": 0.0, "text_blend": 0.0}
NOTHING: dict[str, Any] = {"gamma": 0.0, "text_blend": 0.0, "upsilon": 0.0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "both texts": ({"refine_source": True}, {"blends_source": True}),
    "strong": ({"gamma": 3.0, "delta": 0.2, "text_blend": 0.5, "alpha": 4.0, "upsilon": 50.0},
               {"gamma": 3.0, "delta": 0.2, "blend": 0.5, "alpha": 4.0, "upsilon": 50.0}),
    "map": ({"form": "map", "alpha": 4.0, "upsilon": 50.0},
            {"on_map": True, "alpha": 4.0, "upsilon": 50.0}),
}  # fmt: skip


def wide(name: str) -> Any:
    """A tiny pipeline in float64."""
    pipe = build(name)
    pipe.to(torch.float64)
    return pipe


def reference(name: str, way: dict[str, Any], **settings: Any) -> Plain:
    """Where the pair stands in the batch of a pipeline."""
    if "flux" in name:
        return Plain(period=2 if "true_cfg_scale" in way else 1, **settings)
    rows = (0, 1) if way else (2, 3)
    return Plain(rows=rows, text_first=False, singles=99, **settings)


# --- against plain loops -----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_run_equals_plain_loops(way: str) -> None:
    name, arguments = WAYS[way]
    pipe = wide(name)
    ours = pair_run(pipe, HeadRouter(), **arguments)
    with reference(name, arguments).inside(pipe):
        theirs = pair_run(pipe, **arguments)
    plain = pair_run(pipe, **arguments)
    assert (theirs - plain).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_every_setting_equals_plain_loops(case: str) -> None:
    ours, theirs = CASES[case]
    pipe = wide("flux")
    with Plain(**theirs).inside(pipe):
        expected = pair_run(pipe)
    assert (pair_run(pipe, HeadRouter(**ours)) - expected).abs().max() < 1e-9


# --- off means identical -----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings",
    [NOTHING, {"steps": "20-"}, {"steps": "ramp 0..0"}],
    ids=["every strength 0", "outside its window", "a ramp of nothing"],
)
def test_off_is_bit_identical_to_two_plain_rows(way: str, settings: dict[str, Any]) -> None:
    name, arguments = WAYS[way]
    pipe = build(name)
    ours = pair_run(pipe, HeadRouter(**settings), **arguments)
    assert torch.equal(ours, pair_run(pipe, **arguments))


def test_before_its_window_the_run_is_plain_to_the_bit() -> None:
    pipe = build("flux")
    ours, plain = latents_by_step(pipe, HeadRouter(steps="2-")), latents_by_step(pipe)
    assert torch.equal(torch.stack(ours[:2]), torch.stack(plain[:2]))
    assert not torch.equal(ours[2], plain[2])


# --- the source --------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "form"), [*((way, "output") for way in WAYS), ("flux", "map")])
def test_the_source_is_never_touched(way: str, form: str) -> None:
    name, arguments = WAYS[way]
    pipe = build(name)
    strong = HeadRouter(gamma=1.0, text_blend=0.5, alpha=5.0, form=form)
    ours, plain = latents_by_step(pipe, strong, **arguments), latents_by_step(pipe, **arguments)
    for steered, other in zip(ours, plain, strict=True):
        assert torch.equal(steered[0], other[0])
        assert not torch.equal(steered[1], other[1])


@pytest.mark.parametrize("way", WAYS)
def test_only_the_conditional_row_of_the_target_is_touched(way: str) -> None:
    name, arguments = WAYS[way]
    pipe = build(name)
    ours = torch.cat(predictions(pipe, HeadRouter(gamma=1.0), steps=1, **arguments))
    plain = torch.cat(predictions(pipe, steps=1, **arguments))
    touched = [row for row, (a, b) in enumerate(zip(ours, plain, strict=True)) if not a.equal(b)]
    assert touched == ([3] if len(plain) == 4 and "flux" not in name else [1])


def test_the_source_stays_when_it_comes_second() -> None:
    pipe = build("sd3")
    ours = pair_run(pipe, HeadRouter(source=1, target=0))
    plain = pair_run(pipe)
    assert torch.equal(ours[1], plain[1])
    assert not torch.equal(ours[0], plain[0])


def test_refining_the_source_changes_its_text_alone() -> None:
    pipe = build("flux")
    plain = pair_run(pipe)
    assert not torch.equal(pair_run(pipe, HeadRouter(refine_source=True))[0], plain[0])
    apart = HeadRouter(refine_source=True, text_blend=0.0)
    assert torch.equal(pair_run(pipe, apart)[0], plain[0])


# --- the parts ---------------------------------------------------------------------------------


def seen(pipe: Any, technique: HeadRouter, prompts: Any = PAIR, **changes: Any) -> tuple[Any, Any]:
    """Outputs of every site before and behind a technique."""
    before, after = Outputs(place="before"), Outputs(place="after")
    pair_run(pipe, before, technique, after, prompts=prompts, steps=1, **changes)
    return before, after


@pytest.mark.parametrize("name", PAIRED)
def test_equal_rows_get_the_smallest_weight_not_one(name: str) -> None:
    before, after = seen(
        build(name), HeadRouter(**HEADS_ALONE, where="joint,layers=0"), ("a cat", "a cat")
    )
    key = next(k for k in after.by_site if k[1] == "transformer_blocks.0.attn")
    target = before.calls[key].pick(branch="cond", item=1)
    ratio = after.by_site[key][target] / before.by_site[key][target]
    expected = 1 + 0.2 * sigmoid(-0.5)
    assert expected == pytest.approx(1.0755, abs=1e-4)
    assert torch.allclose(ratio, torch.tensor(expected), atol=2e-6)


@pytest.mark.parametrize("name", PAIRED)
def test_heads_are_those_of_the_module(name: str) -> None:
    """A head is a slice of the channels at every token, not a part of the tokens."""
    pipe = build(name)
    widths: list[Tensor] = []
    first = pipe.transformer.transformer_blocks[0].attn.to_out[0]
    handle = first.register_forward_pre_hook(lambda module, args: widths.append(args[0].clone()))
    pair_run(pipe, steps=1)
    one = HeadRouter(**HEADS_ALONE, router="constant", gamma=1.2, where="joint,layers=0,heads=1")
    pair_run(pipe, one, steps=1)
    handle.remove()
    plain, ours = widths
    ratio = (ours / plain)[-1]  # the target's conditional row is the last one
    assert torch.allclose(ratio[:, :16], torch.ones(()))
    assert torch.allclose(ratio[:, 16:], torch.tensor(2.2))
    assert torch.equal(ours[:-1], plain[:-1])


def test_a_head_that_answers_differently_is_amplified_more() -> None:
    before, after = seen(build("flux"), HeadRouter(**HEADS_ALONE))
    for key, out in after.by_site.items():
        ratio = (out[1] / before.by_site[key][1]).mean((-1, -2))
        plain = before.by_site[key]
        similar = torch.cosine_similarity(plain[0].flatten(1), plain[1].flatten(1), dim=1)
        assert ratio[similar.argmin()] == pytest.approx(1 + 0.2 * sigmoid(0.5), abs=1e-5)
        assert ratio[similar.argmax()] == pytest.approx(1 + 0.2 * sigmoid(-0.5), abs=1e-5)


def test_heads_of_the_source_can_be_put_in() -> None:
    before, after = seen(
        build("flux"), HeadRouter(**HEADS_ALONE, router="source", gamma=1.0, where="joint,heads=0")
    )
    for key, out in after.by_site.items():
        assert torch.allclose(out[1, 0], out[0, 0], atol=1e-6)
        assert torch.equal(out[1, 1], before.by_site[key][1, 1])


@pytest.mark.parametrize("form", ["output", "map"])
def test_image_refinement_touches_image_tokens_of_single_blocks_alone(form: str) -> None:
    before, after = seen(build("flux"), HeadRouter(**IMAGE_ALONE, form=form, alpha=5.0))
    assert len(after.by_site) == 4
    for key, out in after.by_site.items():
        plain, layout = before.by_site[key], before.calls[key].layout
        assert torch.equal(out[0], plain[0])
        if key[1].startswith("transformer_blocks"):
            assert torch.equal(out, plain)
            continue
        assert torch.equal(out[1][:, layout.text], plain[1][:, layout.text])
        ratio = (out[1] / plain[1])[:, layout.image]
        assert not torch.allclose(ratio, torch.ones(()))
        if form == "output":
            assert ratio.min() >= 2.5 - 1e-5
            assert ratio.max() < 5.0


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("both", [False, True])
def test_the_text_of_a_block_is_mixed_into_the_next(name: str, both: bool) -> None:
    pipe = build(name)
    given: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        given.append(kwargs["encoder_hidden_states"])

    blocks = pipe.transformer.transformer_blocks
    handles = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks]
    technique = HeadRouter(**TEXT_ALONE, refine_source=both)
    pair_run(pipe, steps=1)
    plain = given.copy()
    given.clear()
    pair_run(pipe, technique, steps=1)
    for handle in handles:
        handle.remove()
    assert torch.equal(given[0], plain[0])
    mixed = 0.9 * plain[1] + 0.1 * plain[0]
    assert torch.allclose(given[1][-1], mixed[-1], atol=1e-6)
    assert not torch.allclose(mixed[-1], plain[1][-1], atol=1e-2)
    assert torch.equal(given[1][-2], plain[1][-2]) != both
