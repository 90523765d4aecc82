"""Which rows of the batch are which: guidance in one batch, in separate calls, switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, TextToVideoSDPipeline, UNet3DConditionModel

from attnctl import HeatMaps, attach
from attnctl.calls import AddedRow
from attnctl.engine.rows import append_rows, rows_of_call, take_rows
from attnctl.errors import BranchError
from attnctl.families import find_family
from tests.core.samples import Perturbed, Shift, Temperature, Watch
from tests.support.denoisers.unets import UNET_3D
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate, picture

UNCOND, COND = ("uncond", 0), ("cond", 0)
TWO = ["a cat", "a frog"]


def rows_seen(pipe: DiffusionPipeline, *args: Any, **kwargs: Any) -> dict[int, set[Any]]:
    watch = Watch(where="index=0")
    with attach(pipe, watch):
        generate(pipe, *args, **kwargs)
    return watch.rows_by_step


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "animatediff", "cogvideox", "pixart_alpha"])
def test_guidance_in_one_batch_is_seen(name: str) -> None:
    assert rows_seen(build(name)) == {0: {(UNCOND, COND)}, 1: {(UNCOND, COND)}}


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "animatediff", "cogvideox", "pixart_alpha"])
def test_without_guidance_every_row_is_conditional(name: str) -> None:
    seen = rows_seen(build(name), guidance_scale=1.0)

    assert seen == {0: {(COND,)}, 1: {(COND,)}}


@pytest.mark.parametrize("name", ["sd1", "sd3", "pixart_alpha", "animatediff"])
def test_items_of_a_batch_are_counted_within_each_branch(name: str) -> None:
    one, two = (("uncond", 0), ("uncond", 1)), (("cond", 0), ("cond", 1))

    assert rows_seen(build(name), TWO)[0] == {(*one, *two)}
    assert rows_seen(build(name), TWO, guidance_scale=1.0)[0] == {two}


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_equal_noise_for_two_prompts_is_not_taken_for_guidance(name: str) -> None:
    pipe = build(name)
    twins = [torch.Generator().manual_seed(0) for _ in TWO]
    seen = rows_seen(pipe, TWO, guidance_scale=1.0, generator=twins)

    assert seen[0] == {(("cond", 0), ("cond", 1))}


def test_a_wrong_guess_is_found_out_before_the_second_step() -> None:
    # PixArt keeps its scale to itself, and equal noise beside different texts looks like guidance.
    pipe = build("pixart_alpha")
    before = fingerprint(pipe)
    twins = [torch.Generator().manual_seed(0) for _ in TWO]
    watch = Watch(where="index=0")
    with (
        pytest.raises(BranchError, match=r"2 rows .* 1 items, .* 2; .*branches="),
        attach(pipe, watch),
    ):
        generate(pipe, TWO, guidance_scale=1.0, generator=twins)

    assert {call.step.index for call in watch.seen} == {0}
    assert differences(before, fingerprint(pipe)) == []
    assert rows_seen_with_branches(pipe, ("cond",), twins) == {(("cond", 0), ("cond", 1))}


def rows_seen_with_branches(
    pipe: DiffusionPipeline, branches: tuple[str, ...], noise: list[torch.Generator]
) -> set[Any]:
    watch = Watch(where="index=0")
    with attach(pipe, watch, branches=branches):
        generate(pipe, TWO, guidance_scale=1.0, generator=noise)
    return watch.rows_by_step[1]


@pytest.mark.parametrize(
    ("branches", "guidance"),
    [
        (("uncond", "cond"), 1.0),
        (("cond",), 5.0),
        (("cond", "image", "uncond"), 5.0),
    ],
)
def test_wrong_branches_are_refused_before_the_second_step(
    branches: tuple[str, ...], guidance: float
) -> None:
    pipe = build("sd1")
    watch = Watch(where="mid:self")
    with pytest.raises(BranchError, match="branches="), attach(pipe, watch, branches=branches):
        generate(pipe, guidance_scale=guidance)

    assert len(watch.seen) <= 1


def test_guidance_switched_off_by_a_callback_is_seen() -> None:
    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
        return values

    options = {
        "steps": 4,
        "callback_on_step_end": callback,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    pipe = build("sd1")
    plain = generate(pipe, **options)
    for branches in (None, ("uncond", "cond")):
        watch = Watch(where="mid:self")
        with attach(pipe, [watch, HeatMaps()], branches=branches) as session:
            assert torch.equal(plain, generate(pipe, **options))
            assert session.maps.word("cat").isfinite().all()
        counts = {step: len(next(iter(rows))) for step, rows in watch.rows_by_step.items()}
        assert counts == {0: 2, 1: 2, 2: 1, 3: 1}
        assert watch.rows_by_step[3] == {(COND,)}


def test_instruct_pix2pix_has_three_branches_in_its_own_order() -> None:
    seen = rows_seen(build("sd1_pix2pix"), image=picture(), guidance_scale=5.0)

    assert seen == {step: {(COND, ("image", 0), UNCOND)} for step in (0, 1)}


@pytest.mark.parametrize("name", ["wan", "wan22", "lumina2"])
def test_a_pipeline_that_calls_once_a_branch_has_one_branch_a_call(name: str) -> None:
    pipe = build(name)
    if find_family(pipe.transformer).separate:
        assert rows_seen(pipe) == {0: {(COND,), (UNCOND,)}, 1: {(COND,), (UNCOND,)}}
    else:
        assert all(len(rows) == 1 for found in rows_seen(pipe).values() for rows in found)


def test_flux_is_guided_by_its_distilled_scale_or_by_two_calls() -> None:
    pipe = build("flux_dev")
    true_guidance = {"negative_prompt": "a dog", "true_cfg_scale": 3.0}

    assert rows_seen(pipe) == {0: {(COND,)}, 1: {(COND,)}}
    assert rows_seen(pipe, **true_guidance) == {0: {(COND,), (UNCOND,)}, 1: {(COND,), (UNCOND,)}}


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_alpha", "sd3"])
def test_pictures_of_one_prompt_are_items(name: str) -> None:
    seen = rows_seen(build(name), num_images_per_prompt=3)
    items = [("cond", i) for i in range(3)]

    assert [row for row in next(iter(seen[0])) if row[0] == "cond"] == items
    assert all(len(rows) == 6 for rows in seen[0])


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "pixart_alpha", "animatediff", "cogvideox"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_added_rows_guide_the_picture_and_scheduler_and_pipeline_never_see_them(
    name: str, guidance: float
) -> None:
    pipe = build(name)
    kind = "joint" if name in ("sd3", "cogvideox") else "self"
    plain = generate(pipe, guidance_scale=guidance)
    watch = Watch(where="index=0")
    with attach(pipe, [Perturbed(where=kind, scale=2.0), watch]):
        guided = generate(pipe, guidance_scale=guidance)
    with attach(pipe, Perturbed(where=kind, scale=0.0)):
        unguided = generate(pipe, guidance_scale=guidance)

    kinds = [row.kind for row in watch.seen[0].rows]
    if kinds[-1] == "main":  # before the first perturbed block the added row is spared
        assert watch.seen[0].pass_.kind == "main"
        kinds.append("perturbed")
    assert kinds == ["main"] * (len(kinds) - 1) + ["perturbed"]
    assert guided.shape == plain.shape
    assert (guided - plain).abs().max() > 1e-4
    assert torch.allclose(unguided, plain, atol=2e-4 * plain.abs().max())


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_term_of_separate_calls_is_added_to_every_branch(name: str) -> None:
    pipe = build(name)
    kind = "joint" if name == "flux" else "self"
    plain = generate(pipe)
    with attach(pipe, Perturbed(where=kind, scale=2.0)):
        guided = generate(pipe)

    assert (guided - plain).abs().max() > 1e-5


def test_an_added_row_gets_the_edits_of_the_row_that_it_shadows() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()):
        hot = generate(pipe)
    with attach(pipe, [Temperature(), Perturbed(scale=0.0)]):
        shadowed = generate(pipe)

    assert torch.allclose(hot, shadowed, atol=1e-4)


def test_taking_rows_keeps_what_is_not_batched() -> None:
    arguments = {
        "sample": torch.arange(4.0)[:, None],
        "timestep": torch.tensor(5),
        "encoder_hidden_states": torch.arange(12.0)[:, None],  # three frames a row
        "added_cond_kwargs": {"time_ids": torch.arange(4), "pictures": [torch.arange(4)]},
        "rotary": torch.arange(4),
    }
    batched = frozenset(arguments) - {"rotary"}
    taken = take_rows(arguments, batched, 4, [2, 3])

    assert taken["sample"].flatten().tolist() == [2, 3]
    assert taken["timestep"] == 5
    assert taken["encoder_hidden_states"].flatten().tolist() == [6, 7, 8, 9, 10, 11]
    assert taken["added_cond_kwargs"]["time_ids"].tolist() == [2, 3]
    assert taken["added_cond_kwargs"]["pictures"][0].tolist() == [2, 3]
    assert taken["rotary"].tolist() == [0, 1, 2, 3]


def test_two_kinds_of_added_rows_stand_one_behind_the_other() -> None:
    rows = rows_of_call(("uncond", "cond"), 2)
    arguments = {"sample": torch.arange(4.0)[:, None], "encoder_hidden_states": torch.zeros(4, 1)}
    negative = {"encoder_hidden_states": torch.ones(2, 1)}
    added = [AddedRow("first"), AddedRow("second", "uncond", negative)]
    result, roles = append_rows(arguments, frozenset(arguments), rows, added)

    assert result["sample"].flatten().tolist() == [0, 1, 2, 3, 2, 3, 0, 1]
    assert result["encoder_hidden_states"].flatten().tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert [(r.branch, r.item, r.kind) for r in roles[4:]] == [
        ("cond", 0, "first"),
        ("cond", 1, "first"),
        ("uncond", 0, "second"),
        ("uncond", 1, "second"),
    ]


def test_a_pipeline_around_a_denoiser_of_no_known_family_works() -> None:
    parts = build("sd1")
    pipe = TextToVideoSDPipeline(
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        scheduler=parts.scheduler,
        unet=UNet3DConditionModel(**{**UNET_3D, "cross_attention_dim": 32}).eval(),
    )
    pipe.set_progress_bar_config(disable=True)

    def run() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(
            PROMPT,
            height=16,
            width=16,
            num_frames=2,
            num_inference_steps=2,
            generator=generator,
            output_type="latent",
        ).frames

    plain = run()
    watch = Watch(where="index=0")
    with attach(pipe, [watch, Temperature(steps="0-0")]):
        assert torch.equal(plain, run())
    with attach(pipe, [Shift(steps="1-"), Temperature(where="index=0")]):
        assert not torch.equal(plain, run())

    assert watch.rows_by_step == {0: {(UNCOND, COND)}, 1: {(UNCOND, COND)}}


def test_a_bare_denoiser_has_conditional_rows_and_takes_any_batch() -> None:
    pipe = build("sd1")
    watch = Watch(where="mid:self")
    text = torch.zeros(1, 77, 32)
    with attach(pipe.unet, watch):
        for rows, side in ((1, 16), (3, 16), (2, 8)):
            noise = torch.zeros(rows, 4, side, side)
            pipe.unet(noise, 5, text.expand(rows, -1, -1))

    assert [len(call.rows) for call in watch.seen] == [1, 3, 2]
    assert all(row.branch == "cond" for call in watch.seen for row in call.rows)


def test_a_shift_after_the_step_reaches_every_item() -> None:
    pipe = build("sd1")
    plain = generate(pipe, [PROMPT, PROMPT], steps=1)
    with attach(pipe, Shift()):
        assert torch.allclose(generate(pipe, [PROMPT, PROMPT], steps=1), plain + 0.1)
