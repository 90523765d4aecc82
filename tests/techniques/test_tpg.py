"""TPG against a second forward with shuffled tokens, and its invariants."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import attnctl
from attnctl import TPG, AttendAndExcite
from attnctl.calls import Row, Step
from attnctl.engine.module_edits import ModuleCall
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.shuffle import keyed_permutation
from tests.core.samples import Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.damaged import (
    assert_same_effect,
    counted,
    guided_by_hand,
    in_one_batch,
    steered,
)

SHUFFLED = {
    "pixart_sigma": (0, "transformer_blocks.0"),
    "sd3": (1, "transformer_blocks.1"),
    "flux": (3, "single_transformer_blocks.1"),
    "cogvideox": (1, "transformer_blocks.1"),
    "wan": (1, "blocks.1"),
}
REPLAYED = ["sd1", "sdxl", "sd3", "flux", "wan", "pixart_sigma", "cogvideox", "animatediff"]


@contextmanager
def shuffling(model: nn.Module, path: str, steps: list[int]) -> Generator[None]:
    """Shuffle the tokens at the entry of a block inside this ``with`` block; counts its uses."""
    block = model.get_submodule(path)

    def shuffle(_: Any, args: Any, kwargs: Any) -> Any:
        tokens = kwargs.get("hidden_states", args[0] if args else None)
        shuffled = tokens[:, keyed_permutation(tokens.shape[1], 5, len(steps), path)]
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": shuffled}
        return (shuffled, *args[1:]), kwargs

    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(shuffle, with_kwargs=True).remove)
        yield
    steps.append(len(steps))


@pytest.mark.parametrize("name", SHUFFLED)
def test_tpg_equals_a_second_forward_with_shuffled_tokens(name: str) -> None:
    index, path = SHUFFLED[name]
    pipe, steps = build(name), list[int]()
    plain = generate(pipe)
    theirs = guided_by_hand(pipe, lambda model: shuffling(model, path, steps), 2.0)
    ours = steered(pipe, TPG(scale=2.0, blocks=(index,), seed=5))
    assert_same_effect(ours, theirs, plain)


def test_the_order_of_tokens_that_stand_as_they_were_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "attnctl.techniques.tpg.keyed_permutation", lambda count, *_: torch.arange(count)
    )
    for name in ("sd1", "sd3", "wan"):
        pipe = build(name)
        plain = generate(pipe)
        with attnctl.attach(pipe, TPG(blocks=(1,))) as session:
            assert torch.allclose(generate(pipe), plain, atol=2e-5)
        assert any("no effect" in line for line in session.report().warnings)


def test_orders_are_permutations_that_follow_from_their_key_alone() -> None:
    order = keyed_permutation(50, 0, 3, "blocks.1")
    assert sorted(order.tolist()) == list(range(50))
    torch.manual_seed(1)
    assert torch.equal(order, keyed_permutation(50, 0, 3, "blocks.1"))
    for key in [(1, 3, "blocks.1"), (0, 4, "blocks.1"), (0, 3, "blocks.2")]:
        assert not torch.equal(order, keyed_permutation(50, *key))


def test_a_seed_gives_the_same_picture_and_another_seed_another_one() -> None:
    pipe = build("sd1")
    first = steered(pipe, TPG(blocks=(1, 2)))
    torch.manual_seed(1234)
    assert torch.equal(steered(pipe, TPG(blocks=(1, 2))), first)
    assert not torch.equal(steered(pipe, TPG(blocks=(1, 2), seed=1)), first)


def test_no_generator_but_its_own_is_used() -> None:
    pipe = build("sd1")
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    steered(pipe, TPG(blocks=(1,)))
    assert torch.equal(torch.random.get_rng_state(), before)
    generator = torch.Generator().manual_seed(0)
    plainly = torch.Generator().manual_seed(0)
    steered(pipe, TPG(blocks=(1,)), generator=generator)
    generate(pipe, generator=plainly)
    assert torch.equal(generator.get_state(), plainly.get_state())


def test_the_text_of_a_joint_block_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_batch(monkeypatch)
    pipe = build("sd3")
    watch = Watch(where="layers=0,joint", needs_layout=True)
    steered(pipe, TPG(blocks=(0,)), watch, steps=1)
    call = watch.seen[0]
    layout = call.layout
    assert layout is not None
    assert layout.text is not None
    key = call.key
    assert torch.allclose(key[1][:, layout.text], key[2][:, layout.text], atol=1e-5)
    order = keyed_permutation(layout.image.stop, 0, 0, "transformer_blocks.0")
    assert torch.allclose(key[1][:, layout.image][:, order], key[2][:, layout.image], atol=1e-5)


@pytest.mark.parametrize("name", REPLAYED)
def test_replay_equals_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, tpg = build(name), TPG(blocks=(1,))
    plain, before = generate(pipe), fingerprint(pipe)
    with attnctl.attach(pipe, tpg) as session:
        replayed = generate(pipe)
    assert all(entry.first for entry in session.report().added)
    assert differences(before, fingerprint(pipe)) == []
    in_one_batch(monkeypatch)
    batched = steered(pipe, tpg)
    assert_same_effect(replayed, batched, plain)


def test_batch_equals_singles() -> None:
    pipe, tpg = build("sd1"), TPG(blocks=(1,))
    prompts = ["a cat and a frog", "a red dog"]
    both = steered(pipe, tpg, prompt=prompts)
    for place, prompt in enumerate(prompts):
        one = steered(pipe, tpg, prompt=prompt, seed=place)
        assert torch.allclose(both[place], one[0], atol=2e-4)


@pytest.mark.parametrize(
    "technique",
    [TPG(scale=0, blocks=(1,)), TPG(blocks=()), TPG(blocks=(1,), steps=attnctl.after(7))],
    ids=["scale 0", "no blocks", "window behind the run"],
)
def test_off_is_identical_and_costs_no_forward(technique: TPG) -> None:
    pipe = build("sd1")
    with counted(pipe.unet.conv_in) as plainly:
        plain = generate(pipe)
    with counted(pipe.unet.conv_in) as attached:
        assert torch.equal(steered(pipe, technique), plain)
    assert attached == plainly


def test_an_exception_in_the_shuffled_forward_restores_everything() -> None:
    pipe = build("sd1")
    generate(pipe)
    before = fingerprint(pipe)

    def fail_for_three_rows(module: Any, args: Any) -> None:
        if args[0].shape[0] == 3:
            raise RuntimeError("out of memory, say")

    hook = pipe.unet.up_blocks[0].resnets[0].register_forward_pre_hook(fail_for_three_rows)
    with pytest.raises(RuntimeError, match="out of memory"):
        steered(pipe, TPG(blocks=(1,)))
    hook.remove()
    assert differences(before, fingerprint(pipe)) == []


def test_tpg_and_attend_and_excite_run_together() -> None:
    pipe, tpg = build("sd1"), TPG(blocks=(1,))
    exciting = AttendAndExcite(["cat", "frog"], thresholds={})
    alone, excited = steered(pipe, tpg), steered(pipe, exciting)
    both = steered(pipe, exciting, tpg)
    assert not torch.equal(both, alone)
    assert not torch.equal(both, excited)


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma", "flux"])
def test_the_default_is_for_sdxl_and_others_are_told_their_blocks(name: str) -> None:
    with pytest.raises(NoSiteError, match=r"those of SDXL.* has \d+: .*choose with blocks="):
        attnctl.attach(build(name), TPG())


@pytest.mark.parametrize("given", [{"x": torch.ones(1, 4, 2)}, {"hidden_states": torch.ones(1, 4)}])
def test_a_block_that_takes_no_tokens_is_refused_with_what_it_takes(given: Any) -> None:
    call = ModuleCall("blocks.0", Step(0, 1), (Row("cond", 0, "perturbed"),), given)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0 takes no hidden_states.*blocks="):
        TPG(blocks=(0,)).shuffle_tokens(call)


@pytest.mark.parametrize("settings", [{"blocks": "x"}, {"seed": 1.5}, {"where": "mid:self"}])
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"tpg: (blocks|seed|where)="):
        TPG(**settings)
