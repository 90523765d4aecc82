"""SLG against SD3's own skipped layers, models with blocks taken out, and its invariants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import attnctl
from attnctl import PAG, SLG, AttendAndExcite, SoftPAG, families
from attnctl.blocks import block_numbers
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.damaged import (
    assert_same_effect,
    counted,
    guided_by_hand,
    in_one_batch,
    steered,
    without_blocks,
)

# Blocks that exist in the toy models, and the same as a list of each stack.
BLOCKS = {
    "flux": ((1, 2), {"transformer_blocks": [1], "single_transformer_blocks": [0]}),
    "wan": ((1,), {"blocks": [1]}),
    "cogvideox": ((1,), {"transformer_blocks": [1]}),
    "pixart_sigma": ((0,), {"transformer_blocks": [0]}),
    "sd3": ((1,), {"transformer_blocks": [1]}),
}
REPLAYED = ["sd1", "sdxl", "sd3", "flux", "wan", "wan22", "pixart_sigma", "cogvideox"]


@pytest.mark.parametrize("blocks", [(1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_slg_equals_the_skipped_layers_of_stable_diffusion_3(
    name: str, blocks: tuple[int, ...]
) -> None:
    pipe, steps = build(name), 8
    plain = generate(pipe, steps=steps)
    ours = steered(pipe, SLG(blocks=blocks), steps=steps)
    theirs = generate(pipe, steps=steps, skip_guidance_layers=list(blocks))
    assert_same_effect(ours, theirs, plain)


@pytest.mark.parametrize(("start", "stop"), [(0.01, 0.2), (0.05, 0.61), (0.3, 1.0)])
def test_the_window_is_that_of_stable_diffusion_3(start: float, stop: float) -> None:
    pipe, steps = build("sd3"), 12
    plain = generate(pipe, steps=steps)
    slg = SLG(blocks=(1,), scale=1.5, steps=attnctl.between(start, stop))
    theirs = generate(
        pipe,
        steps=steps,
        skip_guidance_layers=[1],
        skip_layer_guidance_scale=1.5,
        skip_layer_guidance_start=start,
        skip_layer_guidance_stop=stop,
    )
    assert_same_effect(steered(pipe, slg, steps=steps), theirs, plain)


@pytest.mark.parametrize("name", BLOCKS)
def test_slg_equals_a_second_forward_without_the_blocks(name: str) -> None:
    blocks, stacks = BLOCKS[name]
    pipe = build(name)
    plain = generate(pipe)
    theirs = guided_by_hand(pipe, lambda model: without_blocks(model, stacks), 2.0)
    ours = steered(pipe, SLG(scale=2.0, blocks=blocks, steps="always"))
    assert_same_effect(ours, theirs, plain)


def test_blocks_of_a_unet_count_down_then_mid_then_up() -> None:
    pipe = build("sd1")
    ours = steered(pipe, SLG(scale=2.0, blocks="0-1", steps="always"))
    inner = [
        block
        for part in (*pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks)
        for attention in getattr(part, "attentions", [])
        for block in attention.transformer_blocks
    ]
    with attnctl.attach(pipe, SLG(blocks=tuple(range(len(inner))), steps="always")) as session:
        generate(pipe)
    paths = session.report().matched["slg"]
    names = {module: f"unet.{path}" for path, module in pipe.unet.named_modules()}
    assert paths == tuple(names[block] for block in inner)
    assert not torch.equal(ours, generate(pipe))


def test_a_model_of_no_known_family_skips_blocks_with_one_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(families._families, "DiTTransformer2DModel")
    pipe = build("dit")
    plain = generate(pipe)
    assert not torch.equal(steered(pipe, SLG(blocks=(1,), steps="always")), plain)


def test_blocks_whose_outputs_nobody_describes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(families._families, "AuraFlowTransformer2DModel")
    pipe = build("aura_flow")
    generate(pipe)
    before = fingerprint(pipe)
    with pytest.raises(UnsupportedModelError, match=r"returns 2 values.*streams="):
        steered(pipe, SLG(blocks=(0,), steps="always"))
    assert differences(before, fingerprint(pipe)) == []


@pytest.mark.parametrize("form", ["block", "attention"])
@pytest.mark.parametrize("name", REPLAYED)
def test_replay_equals_one_batch(name: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build(name)
    slg = SLG(blocks=(1,), form=form, steps="always")
    plain, before = generate(pipe), fingerprint(pipe)
    with attnctl.attach(pipe, slg) as session:
        replayed = generate(pipe)
    assert all(entry.first for entry in session.report().added)
    assert differences(before, fingerprint(pipe)) == []
    in_one_batch(monkeypatch)
    assert_same_effect(replayed, steered(pipe, slg), plain)
    assert torch.equal(generate(pipe), plain)


def test_a_skipped_block_is_not_run_for_added_rows() -> None:
    pipe = build("wan")
    with (
        counted(pipe.transformer.blocks[0]) as first,
        counted(pipe.transformer.blocks[1]) as second,
    ):
        steered(pipe, SLG(blocks=(1,), steps="always"), guidance_scale=1.0)
    assert first == second == [2, 2]  # two steps, the added row passes both blocks by
    ran: list[int] = []
    inner = [
        block.ffn.register_forward_hook(lambda module, args, output: ran.append(len(output)))
        for block in pipe.transformer.blocks
    ]
    steered(pipe, SLG(blocks=(1,), steps="always"), guidance_scale=1.0)
    for hook in inner:
        hook.remove()
    assert ran == [1] * 4


@pytest.mark.parametrize(
    ("pag", "name"), [({"where": "layers=1,self"}, "wan"), ({"where": "layers=1,joint"}, "flux")]
)
def test_skipping_attention_is_pag_at_these_blocks(name: str, pag: dict[str, Any]) -> None:
    pipe = build(name)
    plain = generate(pipe)
    skipped = SLG(scale=2.0, blocks=(1,), form="attention", steps="always")
    assert_same_effect(steered(pipe, skipped), steered(pipe, PAG(scale=2.0, **pag)), plain)


@pytest.mark.parametrize(
    "technique",
    [
        SLG(scale=0, blocks=(0,), steps="always"),
        SLG(blocks=(), steps="always"),
        SLG(blocks=(0,), steps=attnctl.after(7)),
        SLG(blocks=(0,)),
    ],
    ids=["scale 0", "no blocks", "window behind the run", "window between two steps"],
)
@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_off_is_identical_and_costs_no_forward(name: str, technique: SLG) -> None:
    pipe = build(name)
    with counted(pipe.transformer) as plainly:
        plain = generate(pipe)
    with counted(pipe.transformer) as attached, attnctl.attach(pipe, technique) as session:
        assert torch.equal(generate(pipe), plain)
    assert attached == plainly
    assert len(session.report().warnings) == 1


def test_an_exception_in_the_skipping_forward_restores_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("sd3")
    generate(pipe)
    before = fingerprint(pipe)
    last = pipe.transformer.transformer_blocks[2]

    def fail_for_one_row(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["hidden_states"].shape[0] in (1, 3):
            raise RuntimeError("out of memory, say")

    hook = last.register_forward_pre_hook(fail_for_one_row, with_kwargs=True)
    for batched in (False, True):
        if batched:
            in_one_batch(monkeypatch)
        with pytest.raises(RuntimeError, match="out of memory"):
            steered(pipe, SLG(blocks=(1,), steps="always"))
    hook.remove()
    assert differences(before, fingerprint(pipe)) == []


def test_slg_and_attend_and_excite_run_together() -> None:
    pipe = build("sd1")
    slg = SLG(blocks=(1,), steps="always")
    exciting = AttendAndExcite(["cat", "frog"], thresholds={})
    alone, excited = steered(pipe, slg), steered(pipe, exciting)
    with attnctl.attach(pipe, [exciting, slg]) as session:
        both = generate(pipe)
    assert session.report().active_steps("slg") == (0, 1)
    assert session.report().active_steps("attend-and-excite") == (0, 1)
    assert not torch.equal(both, alone)
    assert not torch.equal(both, excited)


def test_blocks_that_are_not_there_are_refused_with_what_there_is() -> None:
    pipe = build("flux")
    before = fingerprint(pipe)
    with pytest.raises(NoSiteError, match=r"block 7.*has 4: double 0-1 .* single 2-3 .*blocks="):
        attnctl.attach(pipe, [SoftPAG(where="layers=1"), SLG()])
    assert differences(before, fingerprint(pipe)) == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"blocks": "seven"}, "block indices"),
        ({"blocks": (-1,)}, "block indices"),
        ({"blocks": (True,)}, "block indices"),
        ({"blocks": 1.5}, "block indices"),
        ({"form": "blocks"}, "did you mean 'block'"),
        ({"where": "mid:self"}, "choose them with blocks="),
        ({"scale": float("inf")}, "finite"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        SLG(**settings)


@pytest.mark.parametrize(
    ("given", "numbers"),
    [("7-9", (7, 8, 9)), ("3+8+16", (3, 8, 16)), ("", ()), (4, (4,)), ([2, 2, 1], (2, 1))],
)
def test_blocks_are_read_from_texts_and_lists(given: object, numbers: tuple[int, ...]) -> None:
    assert block_numbers("slg", "blocks", given) == numbers
