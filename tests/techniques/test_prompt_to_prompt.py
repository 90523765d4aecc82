"""Prompt-to-Prompt on tiny UNets: what is kept, what changes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import PAG, HeatMaps, MasaCtrl, PromptToPrompt
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from tests.support.pipelines import build, generate
from tests.techniques.injection_reference import attend, heads_of, softmax_map, swapped
from tests.techniques.paired_runs import SOURCE, TARGET, both, noise
from tests.techniques.prompt_to_prompt_reference import Controller, run_reference

ADDED = "a cat and a red frog"


@pytest.fixture(scope="module")
def sd1() -> Any:
    return build("sd1")


@pytest.fixture(scope="module")
def plain(sd1: Any) -> Tensor:
    return both(sd1)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    ("technique", "target"),
    [
        (PromptToPrompt("replace"), TARGET),
        (PromptToPrompt("refine"), ADDED),
        (PromptToPrompt("refine", weights={"red": 3.0}), ADDED),
        (PromptToPrompt("reweight", weights={"frog": 3.0}), SOURCE),
        (PromptToPrompt("replace", blend_words=[["cat"], ["dog"]]), TARGET),
    ],
)
def test_the_target_changes_and_the_source_does_not_notice(
    name: str, technique: PromptToPrompt, target: str
) -> None:
    pipe = build(name)
    alone, edited = both(pipe, target=target), both(pipe, technique, target=target)
    assert torch.equal(edited[0], alone[0])
    assert torch.isfinite(edited).all()
    assert (edited[1] - alone[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "technique",
    [
        PromptToPrompt(cross_replace_steps=0.0, self_replace_steps=0.0),
        PromptToPrompt(steps="9-"),
        PromptToPrompt(steps=attnctl.ramp(0.0, 0.0)),
    ],
    ids=["no windows", "window behind the run", "strength 0"],
)
def test_off_is_two_plain_rows_bit_for_bit(
    sd1: Any, plain: Tensor, technique: PromptToPrompt
) -> None:
    assert torch.equal(both(sd1, technique), plain)


@pytest.mark.parametrize("edit", ["replace", "refine"])
@pytest.mark.parametrize("more", [{}, {"blend_words": ["frog"]}])
def test_equal_prompts_give_equal_pictures_bit_for_bit(
    sd1: Any, edit: str, more: dict[str, Any]
) -> None:
    edited = both(sd1, PromptToPrompt(edit, **more), target=SOURCE)
    assert torch.equal(edited[1], edited[0])


def test_steps_behind_both_windows_are_plain(sd1: Any) -> None:
    technique = PromptToPrompt("replace", cross_replace_steps=0.4, self_replace_steps=0.25)
    seen: list[int] = []
    sites = sd1.unet.mid_block.attentions[0].transformer_blocks[0]

    def outputs(run: Any) -> list[Tensor]:
        kept: list[Tensor] = []
        hook = sites.attn2.to_out[0].register_forward_hook(
            lambda _m, args, _o: kept.append(args[0].clone())
        )
        run()
        hook.remove()
        return kept

    given = outputs(lambda: both(sd1, technique, source="a", target="dog"))
    usual = outputs(lambda: both(sd1, source="a", target="dog"))
    for step, (edited, alone) in enumerate(zip(given, usual, strict=True)):
        # Rows: two without and two with the prompts.
        if step < 2 and not torch.equal(edited[3], alone[3]):
            seen.append(step)
        assert torch.equal(edited[2], alone[2])
        if step == 0:
            assert torch.equal(edited[1], alone[1])
    assert seen == [0, 1]


def test_the_injected_map_equals_loops_in_float64(sd1: Any) -> None:
    """The first cross-attention of the first step, from what its projections give."""
    block = sd1.unet.down_blocks[0].attentions[0].transformer_blocks[0]
    seen = {name: list[Tensor]() for name in ("to_q", "to_k", "to_v", "out")}
    hooks = [
        getattr(block.attn2, name).register_forward_hook(
            lambda _m, _a, out, name=name: seen[name].append(out.clone())
        )
        for name in ("to_q", "to_k", "to_v")
    ]
    hooks.append(
        block.attn2.to_out[0].register_forward_hook(
            lambda _m, args, _o: seen["out"].append(args[0].clone())
        )
    )
    technique = PromptToPrompt("refine", {"red": 2.0}, self_replace_steps=0.0)
    both(sd1, technique, target=ADDED, steps=1)
    for hook in hooks:
        hook.remove()
    query, key, value = (
        heads_of(seen[n][0][2:].flatten(0, 1), 2) for n in ("to_q", "to_k", "to_v")
    )
    tokens, scale = 16 * 16, query.shape[-1] ** -0.5
    # "a cat and a frog" against "a cat and a red frog": BOS and four words, then one that is new.
    partners = {j: [(j, 1.0)] for j in range(5)} | {6: [(5, 1.0)], 7: [(6, 1.0)]}
    partners |= {j: [(j, 1.0)] for j in range(8, 77)}
    for head in range(2):
        maps = [
            softmax_map(
                query[head, row * tokens : row * tokens + 8],
                key[head, 77 * row : 77 * row + 77],
                scale,
            )
            for row in (0, 1)
        ]
        mixed = swapped(maps[0], maps[1], partners)
        mixed = [[2 * p if j == 5 else p for j, p in enumerate(row)] for row in mixed]
        truth = attend(mixed, value[head, 77:])
        ours = heads_of(seen["out"][0][3], 2)[head, :8]
        assert (ours - truth).abs().max() < 2e-6


SAME = {j: [(j, 1.0)] for j in range(77)}
# "a red cat" against "a zebra cat": zebra is five tokens here, so what follows keeps its words and
# not its place, and padding behind the last swapped word keeps its place.
SPELLED = {j: [(j, 1.0)] for j in (0, 1, *range(7, 77))} | {j: [(2, 0.2)] for j in range(2, 7)}
NEW_WORD = {j: [(j, 1.0)] for j in (*range(5), *range(8, 77))} | {6: [(5, 1.0)], 7: [(6, 1.0)]}


@pytest.mark.parametrize(
    ("settings", "prompts", "columns", "factors"),
    [
        ({"edit": "replace"}, [SOURCE, TARGET], SAME, {}),
        ({"edit": "replace"}, ["a red cat", "a zebra cat"], SPELLED, {}),
        ({"edit": "refine"}, [SOURCE, ADDED], NEW_WORD, {}),
        ({"edit": "refine", "weights": {"red": 2.0}}, [SOURCE, ADDED], NEW_WORD, {5: 2.0}),
        ({"edit": "reweight", "weights": {"frog": -1.0}}, [SOURCE, SOURCE], SAME, {5: -1.0}),
    ],
    ids=["swap", "swap of another length", "added word", "added and weighed", "weighed"],
)
def test_a_whole_run_equals_a_processor_that_edits_whole_maps(
    settings: dict[str, Any], prompts: list[str], columns: Any, factors: Any
) -> None:
    pipe, other = build("sd1"), build("sd1")
    technique = PromptToPrompt(**settings, cross_replace_steps=0.5, self_replace_steps=0.25)
    source, target = prompts
    usual = both(pipe, source=source, target=target)
    ours = both(pipe, technique, source=source, target=target)
    # Of four steps: int(0.5 * 5) with cross-attention, int(0.25 * 4) with self-attention.
    controller = Controller(columns, range(2), range(1), factors=factors)
    theirs = run_reference(other, controller, prompts, 4)
    size, effect = float(theirs.abs().max()), float((theirs[1] - usual[1]).abs().max())
    assert effect > 1e-2
    assert (ours - theirs).abs().max() < 2e-5 * max(1.0, size)


def test_several_targets_equal_separate_runs(sd1: Any) -> None:
    technique = PromptToPrompt(target=(1, 2))
    together = both(sd1, technique, target=[TARGET, ADDED])
    for place, target in enumerate((TARGET, ADDED), 1):
        alone = both(sd1, PromptToPrompt(), target=target)
        assert torch.allclose(together[place], alone[1], atol=2e-4)


def test_source_and_target_can_change_places(sd1: Any) -> None:
    usual = both(sd1, PromptToPrompt("replace"))
    other = both(sd1, PromptToPrompt("replace", source=1, target=0), source=TARGET, target=SOURCE)
    assert torch.allclose(other[0], usual[1], atol=1e-4)
    assert torch.allclose(other[1], usual[0], atol=1e-4)


def test_without_guidance_the_target_is_edited_too(sd1: Any) -> None:
    alone = both(sd1, guidance_scale=1.0)
    edited = both(sd1, PromptToPrompt("replace"), guidance_scale=1.0)
    assert torch.equal(edited[0], alone[0])
    assert not torch.equal(edited[1], alone[1])


def test_the_unconditional_rows_are_never_touched(sd1: Any) -> None:
    rows: list[Tensor] = []
    hook = sd1.unet.register_forward_hook(lambda *call: rows.append(call[-1][0].clone()))
    both(sd1, steps=1)
    both(sd1, PromptToPrompt("replace"), steps=1)
    hook.remove()
    assert torch.equal(rows[0][:3], rows[1][:3])
    assert not torch.equal(rows[0][3], rows[1][3])


def test_blending_keeps_the_source_outside_the_region(sd1: Any) -> None:
    settings = {"blend_threshold": 0.97, "blend_words": [["cat"], ["dog"]]}
    edited = both(sd1, PromptToPrompt("replace", **settings))
    same = (edited[0] == edited[1]).all(0)
    assert 0 < int(same.sum()) < same.numel()
    forbidden = both(sd1, PromptToPrompt("replace", **settings, subtract_words=["a"]))
    assert int((forbidden[0] == forbidden[1]).all(0).sum()) >= int(same.sum())
    nowhere = both(sd1, PromptToPrompt("replace", **(settings | {"blend_threshold": 1.0})))
    assert torch.equal(nowhere[1], nowhere[0])
    late = both(sd1, PromptToPrompt("replace", **settings, blend_start=1.0))
    assert torch.equal(late, both(sd1, PromptToPrompt("replace")))


def test_an_added_row_is_edited_like_the_row_that_it_shadows(sd1: Any) -> None:
    alone = both(sd1, PromptToPrompt("replace"), target=SOURCE)
    guided = both(sd1, PromptToPrompt("replace"), PAG(where="mid:self"), target=SOURCE)
    assert torch.allclose(guided[1], guided[0], atol=1e-5)
    assert not torch.allclose(guided[0], alone[0], atol=1e-4)


def test_heat_maps_beside_it_change_nothing(sd1: Any) -> None:
    alone = both(sd1, PromptToPrompt("replace"))
    assert torch.equal(both(sd1, HeatMaps(), PromptToPrompt("replace")), alone)


def test_a_recipe_builds_it_again() -> None:
    made = PromptToPrompt(
        "replace", {"dog": 2.0}, {"default_": 0.8, "dog": (0.0, 0.4)}, blend_words=["cat"]
    )
    again = PromptToPrompt.from_settings(made.settings())
    assert again.settings() == made.settings()


@pytest.mark.parametrize(
    ("technique", "prompts", "error", "text"),
    [
        (
            PromptToPrompt("replace"),
            ["a cat", "a red cat"],
            SettingError,
            "2 words and 'a red cat'",
        ),
        (PromptToPrompt(), ["", "a cat"], SettingError, "the source prompt has no words"),
        (PromptToPrompt(), ["a cat", ""], SettingError, "the target prompt has no words"),
        (PromptToPrompt(), ["a cat"], SettingError, "one picture"),
        (PromptToPrompt(target=(1, 2)), ["a cat", "a dog"], SettingError, "target=2"),
        (
            PromptToPrompt(weights={"bird": 2.0}),
            ["a cat", "a dog"],
            WordNotFoundError,
            "'bird' is not in the prompt",
        ),
        (
            PromptToPrompt(cross_replace_steps={"bird": 0.5}),
            ["a cat", "a dog"],
            WordNotFoundError,
            "'bird' is not in the prompt",
        ),
        (
            PromptToPrompt(blend_words=["cat"]),
            ["a cat", "a dog"],
            WordNotFoundError,
            "blend_words: 'cat' is not",
        ),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_the_first_step(
    sd1: Any, technique: Any, prompts: list[str], error: type[AttnctlError], text: str
) -> None:
    entered: list[int] = []
    hook = sd1.unet.conv_in.register_forward_hook(lambda *_: entered.append(1))
    with attnctl.attach(sd1, [technique]), pytest.raises(error, match=text):
        generate(sd1, prompts, latents=noise(sd1, len(prompts)))
    hook.remove()
    assert not entered


def test_embeddings_are_refused_before_the_first_step(sd1: Any) -> None:
    embeds = torch.zeros(2, 77, 32)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds}
    with (
        attnctl.attach(sd1, [PromptToPrompt()]),
        pytest.raises(SettingError, match="was given prompt_embeds"),
    ):
        sd1(**given, num_inference_steps=1, output_type="latent", height=32, width=32)


@pytest.mark.parametrize("name", ["flux", "sd3", "pixart_sigma"])
def test_transformers_are_refused_when_it_is_attached(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="belongs to a transformer"):
        attnctl.attach(build(name), [PromptToPrompt()])


def test_two_techniques_that_swap_keys_are_refused(sd1: Any) -> None:
    with pytest.raises(ConflictError, match="keys and values"):
        both(sd1, PromptToPrompt(), MasaCtrl(start_layer=0, steps="0-"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"edit": "swap"}, "refine"),
        ({"weights": {"cat": float("nan")}}, "finite"),
        ({"cross_replace_steps": 1.5}, "from 0 to 1"),
        ({"cross_replace_steps": "0-50%"}, "such as 0.8"),
        ({"self_replace_steps": (0.8, 0.2)}, "starts after it ends"),
        ({"blend_words": 3}, "words of both prompts"),
        ({"subtract_words": ["cat"]}, "needs blend_words"),
        ({"source": 1}, "must be different pictures"),
        ({"target": -1}, "number of a picture"),
        ({"blend_threshold": 2}, "from 0 to 1"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        PromptToPrompt(**settings)
