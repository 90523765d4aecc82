"""FluxSpace against three plain attention calls, and its invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import FluxSpace
from tests.support.pipelines import build
from tests.techniques.flux_space_reference import ThreeCalls
from tests.techniques.pair_runs import PAIRED, WAYS, latents_by_step, pair_run, predictions

SAME = ("a red cat and a frog",) * 2
EDIT = "blue dog"
ROUNDING = 2e-6  # of the size of the latents: a larger batch may round differently


def wide(name: str) -> Any:
    """A tiny pipeline in float64."""
    pipe = build(name)
    pipe.to(torch.float64)
    return pipe


def reference(name: str, way: dict[str, Any], **settings: Any) -> ThreeCalls:
    """Where the target stands in the batch of a pipeline, and its first word on the text axis."""
    if "flux" in name:
        return ThreeCalls(EDIT, period=2 if "true_cfg_scale" in way else 1, **settings)
    return ThreeCalls(EDIT, row=1 if way else 3, column=1, **settings)


# --- against three calls -----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_run_equals_three_calls_a_block(way: str) -> None:
    name, arguments = WAYS[way]
    pipe = wide(name)
    ours = pair_run(pipe, FluxSpace(EDIT, steps="1-"), prompts=SAME, **arguments)
    with reference(name, arguments, since=1).inside(pipe):
        theirs = pair_run(pipe, prompts=SAME, **arguments)
    plain = pair_run(pipe, prompts=SAME, **arguments)
    assert (theirs[1] - plain[1]).abs().max() > 1e-2
    assert (ours - theirs).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["flux", "sd35"])
@pytest.mark.parametrize(
    "settings",
    [
        {"coarse": 0.0},
        {"fine": 0.0, "coarse": 0.5},
        {"tau": 0.0, "fine": -4.0},
        {"coarse": -0.4, "tau": 0.2, "fine": 9.0},
    ],
    ids=str,
)
def test_every_setting_equals_three_calls(name: str, settings: dict[str, Any]) -> None:
    pipe = wide(name)
    ours = pair_run(pipe, FluxSpace(EDIT, steps="0-", **settings), prompts=SAME, steps=2)
    with reference(name, {}, **settings).inside(pipe):
        theirs = pair_run(pipe, prompts=SAME, steps=2)
    plain = pair_run(pipe, prompts=SAME, steps=2)
    assert (theirs[1] - plain[1]).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-9


# --- off means identical, and the source stays -------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings",
    [{"fine": 0.0, "coarse": 0.0}, {"steps": "20-"}, {"steps": "ramp 0..0"}],
    ids=["every strength 0", "outside its window", "a ramp of nothing"],
)
def test_off_is_bit_identical_to_two_plain_rows(way: str, settings: dict[str, Any]) -> None:
    name, arguments = WAYS[way]
    pipe = build(name)
    ours = pair_run(pipe, FluxSpace(EDIT, **settings), **arguments)
    assert torch.equal(ours, pair_run(pipe, **arguments))


@pytest.mark.parametrize("way", WAYS)
def test_the_source_is_never_touched(way: str) -> None:
    name, arguments = WAYS[way]
    pipe = build(name)
    strong = latents_by_step(pipe, FluxSpace(EDIT, steps="0-", fine=9.0), **arguments)
    weak = latents_by_step(pipe, FluxSpace(EDIT, steps="0-", fine=0.1, coarse=0.1), **arguments)
    plain = latents_by_step(pipe, **arguments)
    for ours, other, without in zip(strong, weak, plain, strict=True):
        assert torch.equal(ours[0], other[0])  # in batches of equal size, to the bit
        assert (ours[0] - without[0]).abs().max() <= ROUNDING * without.abs().max()
        assert not torch.allclose(ours[1], other[1], atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_conditional_row_of_the_target_is_touched(way: str) -> None:
    name, arguments = WAYS[way]
    pipe = build(name)
    calls = predictions(pipe, FluxSpace(EDIT, steps="0-"), steps=1, **arguments)
    without = predictions(pipe, steps=1, **arguments)
    ours = torch.cat([a[: len(b)] for a, b in zip(calls, without, strict=True)])
    plain = torch.cat(without)
    changes = (ours - plain).abs().flatten(1).amax(1) / plain.abs().max()
    touched = [row for row, change in enumerate(changes.tolist()) if change > ROUNDING]
    assert touched == ([3] if len(plain) == 4 and "flux" not in name else [1])


def test_a_single_picture_can_be_edited() -> None:
    pipe = build("flux")
    one = pair_run(pipe, FluxSpace(EDIT, target=0, steps="0-"), prompts=SAME[:1])
    two = pair_run(pipe, FluxSpace(EDIT, steps="0-"), prompts=SAME)
    assert torch.allclose(one[0], two[1], atol=1e-5)
    assert not torch.allclose(one[0], two[0], atol=1e-3)


def test_every_picture_of_a_run_can_be_edited() -> None:
    pipe = build("sd3")
    prompts = (SAME[0], "a photo of a frog")
    ours = pair_run(pipe, FluxSpace(EDIT, target="all", steps="0-"), prompts=prompts)
    named = pair_run(pipe, FluxSpace(EDIT, target=(0, 1), steps="0-"), prompts=prompts)
    assert torch.equal(ours, named)
    assert (ours - pair_run(pipe, prompts=prompts)).abs().flatten(1).amax(1).min() > 1e-3


# --- its parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux", "sd35"])
def test_an_empty_edit_prompt_changes_nothing(name: str) -> None:
    pipe = wide(name)
    plain = pair_run(pipe, prompts=SAME)
    with attnctl.attach(pipe, [FluxSpace(coarse=0.0, fine=8.0, steps="0-")]) as session:
        ours = pair_run(pipe, prompts=SAME)
        assert "prompt is empty" in " ".join(session.report().warnings)
    assert (ours - plain).abs().max() < 1e-8


@pytest.mark.parametrize("name", PAIRED)
def test_the_coarse_edit_modulates_the_text_alone(name: str) -> None:
    pipe = build(name)
    seen: dict[str, Tensor] = {}

    def keep(place: str) -> Any:
        return lambda module, args: seen.update({place: args[0].clone()})

    handles = [
        module.linear.register_forward_pre_hook(keep(place))
        for place, module in pipe.transformer.named_modules()
        if place.endswith((".norm1", ".norm1_context", "norm_out"))
    ]
    pair_run(pipe, prompts=SAME, steps=1)
    plain = dict(seen)
    pair_run(pipe, FluxSpace(EDIT, fine=0.0, coarse=0.7, steps="0-"), prompts=SAME, steps=1)
    for handle in handles:
        handle.remove()
    target = len(next(iter(plain.values()))) - 1
    for place, vectors in seen.items():
        own, before = vectors[: target + 1], plain[place]
        assert torch.allclose(own[:target], before[:target], atol=1e-6)
        is_text = place.endswith("norm1_context")
        assert torch.allclose(own[target], before[target], atol=1e-6) != is_text


def test_single_blocks_compute_the_pipelines_rows_alone() -> None:
    pipe = build("flux")
    shapes: dict[str, set[tuple[int, ...]]] = {}

    def keep(place: str) -> Any:
        return lambda module, args: shapes.setdefault(place, set()).add(tuple(args[0].shape))

    model = pipe.transformer
    handles = [
        model.single_transformer_blocks[0].proj_mlp.register_forward_pre_hook(keep("single")),
        model.transformer_blocks[0].ff.net[0].proj.register_forward_pre_hook(keep("double")),
    ]
    pair_run(pipe, FluxSpace(EDIT, steps="0-"), prompts=SAME, steps=1)
    for handle in handles:
        handle.remove()
    assert shapes == {"single": {(2, 80, 32)}, "double": {(4, 64, 32)}}


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_without_a_fine_edit_the_added_texts_reach_nothing(name: str) -> None:
    pipe = build(name)
    before = pipe.transformer.context_embedder.forward

    def runs() -> list[Tensor]:
        edits = (FluxSpace(EDIT, fine=fine, coarse=0.5, steps="0-") for fine in (0.0, 5.0))
        return [pair_run(pipe, edit, prompts=SAME, steps=1) for edit in edits]

    def shaken(text: Tensor) -> Tensor:
        made = before(text)
        made[-2:] = made[-2:].flip(1)  # the edit row and the null row
        return made

    plain = runs()
    pipe.transformer.context_embedder.forward = shaken
    moved = runs()
    del pipe.transformer.context_embedder.forward
    assert torch.equal(plain[0], moved[0])
    assert not torch.allclose(plain[1], moved[1], atol=1e-4)


def test_the_slider_goes_both_ways_and_further_with_its_strength() -> None:
    pipe = build("flux")
    plain = pair_run(pipe, prompts=SAME)[1]
    moves = {}
    for fine in (-2.0, 0.01, 1.0, 4.0):
        edit = FluxSpace(EDIT, fine=fine, coarse=0.0, tau=0.0, steps="0-")
        moves[fine] = pair_run(pipe, edit, prompts=SAME)[1] - plain
    sizes = {fine: float(move.norm()) for fine, move in moves.items()}
    assert sizes[0.01] < sizes[1.0] < sizes[4.0]
    assert float((moves[-2.0] * moves[1.0]).sum()) < 0


def test_where_chooses_the_blocks_that_move() -> None:
    pipe = build("flux")
    both = pair_run(pipe, FluxSpace(EDIT, coarse=0.0, steps="0-"), prompts=SAME)
    first = pair_run(
        pipe, FluxSpace(EDIT, coarse=0.0, steps="0-", where="joint,layers=0"), prompts=SAME
    )
    assert not torch.equal(first[1], both[1])
    with attnctl.attach(pipe, [FluxSpace(EDIT, where="joint,layers=0")]) as session:
        pair_run(pipe, prompts=SAME)
        moved = {e.site for e in session.report().entries if e.kernel == "move_image"}
    assert moved == {"transformer.transformer_blocks.0.attn"}


def test_the_mask_follows_the_words_it_is_told() -> None:
    pipe = build("flux")
    runs = [
        pair_run(pipe, FluxSpace(EDIT, mask_tokens=tokens, steps="0-"), prompts=SAME)
        for tokens in (None, 0, (0, 1), 3)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0], runs[3])
