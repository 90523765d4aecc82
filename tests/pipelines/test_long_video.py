"""Long clips of several prompts: tiles, one step of the whole clip, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import attnctl
from attnctl import DiTCtrl, SoftPAG
from attnctl.errors import (
    AlreadyAttachedError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.ops.ditctrl import blend_tiles, cut_tiles
from attnctl.pipelines.long_clips import draw_long_videos
from attnctl.pipelines.long_video import make_long_video
from attnctl.pipelines.tiled_steps import TiledSteps
from attnctl.pipelines.tiling import Tiling, check_long_pipeline, plan_long_video
from attnctl.recipes import Recipe
from tests.core.samples import Shift
from tests.pipelines.long_reference import Long
from tests.support.pipelines import build
from tests.support.pipelines.text import T5_LENGTH

PROMPTS = ("a cat", "a red dog", "a blue frog")
SQUARE = {"height": 64, "width": 64, "max_sequence_length": T5_LENGTH}
CALLS: dict[str, dict[str, Any]] = {
    "cogvideox": {"frames": 9, **SQUARE},
    "wan": {"frames": 9, **SQUARE},
    "animatediff": {"frames": 4, "height": 32, "width": 32},
}
SHARED = {
    "cogvideox": "transformer_blocks.1.attn1",
    "wan": "blocks.1.attn1",
    "animatediff": "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
}


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, prompts: Any = PROMPTS[:2], pipe: Any = None, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "tiling": Tiling(1, 1), "generator": seeded(), "num_inference_steps": 3,
        "output_type": "latent", **CALLS[name], **changes,
    }  # fmt: skip
    return make_long_video(pipe or build(name), prompts, **arguments)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("techniques", [None, (), (DiTCtrl(steps="0-"),)], ids=str)
def test_one_prompt_is_the_pipelines_own_clip_bit_for_bit(name: str, techniques: Any) -> None:
    call = dict(CALLS[name])
    plain = build(name)(
        "a cat", num_frames=call.pop("frames"), generator=seeded(), num_inference_steps=3,
        output_type="np", **call,
    )  # fmt: skip
    long = made(name, ["a cat"], techniques=techniques, output_type="np")
    assert np.array_equal(long.frames, plain.frames[0])
    assert long.plan.items == (0,)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("transitions", [0, 2])
def test_a_clip_equals_one_made_pair_by_pair_from_blended_clean_clips(
    name: str, transitions: int
) -> None:
    """Sharing at steps 1 and 2 of 4, three prompts; the reference runs every tile alone."""
    length = 3 if name != "animatediff" else 4
    scale = 4.0
    long = made(
        name, PROMPTS, tiling=Tiling(1, transitions), techniques=[DiTCtrl(steps="1-3")],
        num_inference_steps=4, guidance_scale=scale,
    )  # fmt: skip
    pipe = build(name)
    reference = Long(pipe, PROMPTS, transitions, 1, [SHARED[name]], [1, 2], scale, length)
    frames = length + (2 + 2 * transitions) * (length - 1)
    shape = {"cogvideox": [1, frames, 4, 8, 8], "wan": [1, 16, frames, 8, 8],
             "animatediff": [1, 4, frames, 16, 16]}[name]  # fmt: skip
    noise = torch.randn(shape, generator=seeded())
    with torch.no_grad():
        wanted = reference.run(noise, 4)[0]
    assert long.plan.latent_frames == frames
    error = (long.frames.double() - wanted).abs().max()
    assert error < 2e-5 * wanted.abs().max()
    without = made(
        name, PROMPTS, tiling=Tiling(1, transitions), techniques=(), num_inference_steps=4,
        guidance_scale=scale,
    )  # fmt: skip
    assert (long.frames - without.frames).abs().max() > 20 * error  # sharing is in the comparison


@pytest.mark.parametrize(("name", "frames"), [("cogvideox", 25), ("wan", 25), ("animatediff", 14)])
def test_a_clip_has_the_frames_of_all_tiles(name: str, frames: int) -> None:
    """Six tiles; five for the models that compress time, whose seven latent frames are 25."""
    longer = 1 if name == "animatediff" else 0
    tiling = Tiling(2, 1, longer)
    long = made(name, PROMPTS, tiling=tiling, output_type="np", num_inference_steps=1)
    assert len(long.frames) == frames
    pairs = [(j, j + 1) for j in range(4 + longer)]
    assert long.plan.items == tuple(tile for pair in pairs for tile in pair)


def test_equal_seeds_give_equal_clips_and_steps_are_told() -> None:
    told: list[int] = []
    one, two = (made("animatediff", on_step=told.append) for _ in range(2))
    assert torch.equal(one.frames, two.frames)
    assert told == [1] * 6
    assert one.report.active_steps("ditctrl") == two.report.active_steps("ditctrl") == (1,)


def test_guidance_may_be_off_and_change_from_step_to_step() -> None:
    plain = made("cogvideox", guidance_scale=1.0)
    assert torch.isfinite(plain.frames).all()
    still, changing = (made("cogvideox", use_dynamic_cfg=on) for on in (False, True))
    assert not torch.equal(still.frames, changing.frames)
    other = made("cogvideox", negative_prompt="a dog")
    assert not torch.equal(other.frames, still.frames)


def test_two_experts_share_both() -> None:
    CALLS["wan22"] = CALLS["wan"]
    long = made("wan22", num_inference_steps=4, techniques=[DiTCtrl(steps="0-")])
    del CALLS["wan22"]
    paths = set(long.report.matched["ditctrl"])
    assert paths == {"transformer.blocks.1.attn1", "transformer_2.blocks.1.attn1"}


# --- one step of the whole clip -------------------------------------------------------------

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "ddim with noise": DDIMScheduler,
    "v-prediction": lambda: CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    "dpm of CogVideoX": CogVideoXDPMScheduler,
    "dpm++ 2m sde": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "flow": FlowMatchEulerDiscreteScheduler,
    "unipc flow": lambda: UniPCMultistepScheduler(**FLOW),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_scheduler_steps_the_whole_clip_once(name: str) -> None:
    """Bit for bit what it does when it is called with the clip and the blended prediction."""
    scheduler, alone = SCHEDULERS[name](), SCHEDULERS[name]()
    starts, length = [0, 2, 2, 4], 4
    long = torch.randn(1, 8, 3, 2, generator=seeded(0))
    options: dict[str, Any] = {"generator": seeded(1)} if "generator" in _names(scheduler) else {}
    own: dict[str, Any] = {"generator": seeded(1)} if options else {}
    if name == "ddim with noise":
        options["eta"] = own["eta"] = 1.0
    for one in (scheduler, alone):
        one.set_timesteps(4)
    steps = TiledSteps(scheduler, starts, length, 1)
    tiles = cut_tiles(long, starts, length, 1)
    old: Any = (None, None)
    with steps.installed():
        for index, t in enumerate(scheduler.timesteps):
            predicted = torch.randn(4, length, 3, 2, generator=seeded(10 + index))
            joined = blend_tiles(predicted, starts, 1)
            if name == "dpm of CogVideoX":
                before = scheduler.timesteps[index - 1] if index else None
                tiles, mine = scheduler.step(
                    predicted, old[0], t, before, tiles, **options, return_dict=False
                )
                long, theirs = alone.step(joined, old[1], t, before, long, **own, return_dict=False)
                old = (mine, theirs)
            else:
                tiles = scheduler.step(predicted, t, tiles, **options).prev_sample
                long = alone.step(joined, t, long, **own, return_dict=False)[0]
            assert torch.equal(tiles, cut_tiles(long, starts, length, 1))
    assert torch.equal(steps.take_over(tiles), long)


def _names(scheduler: Any) -> tuple[str, ...]:
    code = (
        type(scheduler).step.__wrapped__ if hasattr(type(scheduler).step, "__wrapped__") else None
    )
    return (code or type(scheduler).step).__code__.co_varnames


def test_what_is_added_to_tiles_between_steps_reaches_the_clip() -> None:
    plain = made("cogvideox", techniques=(), num_inference_steps=2)
    moved = made("cogvideox", techniques=[Shift(amount=0.25, steps="1-")], num_inference_steps=2)
    assert torch.allclose(moved.frames, plain.frames + 0.25, atol=1e-5)
    early = made("cogvideox", techniques=[Shift(amount=0.25, steps="0-1")], num_inference_steps=2)
    assert (early.frames - plain.frames).abs().max() > 0.01


def test_a_technique_of_another_kind_acts_on_tiles() -> None:
    plain = made("cogvideox")
    guided = made("cogvideox", techniques=[DiTCtrl(), SoftPAG(scale=2.0, where="joint")])
    assert torch.isfinite(guided.frames).all()
    assert not torch.allclose(guided.frames, plain.frames, atol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_the_pipeline_is_as_before_also_after_a_stop(name: str) -> None:
    pipe = build(name)
    before, scheduler = made(name, ["a cat"], pipe), pipe.scheduler
    marks = dict(scheduler.__dict__)

    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(name, pipe=pipe, on_step=stop)
    assert pipe.scheduler is scheduler
    assert set(scheduler.__dict__) == set(marks)
    assert "step" not in scheduler.__dict__
    assert torch.equal(made(name, ["a cat"], pipe).frames, before.frames)
    copy.deepcopy(scheduler)


# --- fewer pairs at once ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_pairs_one_after_the_other_give_the_same_clip(name: str, pairs: int) -> None:
    pipe = build(name)
    seen: list[int] = []
    denoiser = pipe.components.get("unet") or pipe.transformer
    layer = denoiser.get_submodule(SHARED[name])
    words = ["cat"] if name != "animatediff" else ()
    settings: dict[str, Any] = {
        "techniques": [DiTCtrl(steps="0-", mask_words=words, mask_threshold=0.6)],
        "guidance_scale": 4.0,
    }
    texts = ["a cat", "a red cat"]
    whole = made(name, texts, pipe, **settings)
    hook = layer.register_forward_pre_hook(lambda _m, a, k: seen.append(1), with_kwargs=True)
    apart = made(name, texts, pipe, pairs_at_once=pairs, **settings)
    hook.remove()
    assert torch.allclose(apart.frames, whole.frames, atol=2e-5)
    branches = 2 if name == "wan" else 1
    assert len(seen) == 3 * branches * (2 if pairs == 1 else 1)  # steps, of two pairs each
    assert "forward" not in denoiser.__dict__


def test_pairs_run_apart_without_techniques_too() -> None:
    whole, apart = (
        made("cogvideox", PROMPTS, techniques=(), pairs_at_once=pairs) for pairs in (None, 1)
    )
    assert torch.allclose(apart.frames, whole.frames, atol=2e-5)


def test_techniques_that_need_all_rows_together_are_refused_with_fewer_pairs() -> None:
    pipe = build("cogvideox")
    with pytest.raises(UnsupportedModelError, match="soft-pag adds rows"):
        made("cogvideox", pipe=pipe, techniques=[SoftPAG(where="joint")], pairs_at_once=1)
    assert "forward" not in pipe.transformer.__dict__
    assert "step" not in pipe.scheduler.__dict__


# --- masks ------------------------------------------------------------------------------------


def test_words_are_found_in_each_prompt_and_blends_take_the_nearer_one() -> None:
    """Given by word, or as the positions that each clip of the batch has."""
    texts = ["a cat", "a red cat"]
    pipe = build("cogvideox")
    at = [attnctl.locate_tokens(pipe, text, "cat")[0].positions for text in texts]
    assert at[0] != at[1]
    settings: dict[str, Any] = {"steps": "0-", "mask_threshold": 0.6}
    tiling = Tiling(1, 2)  # tiles: first, nearer to the first, nearer to the second, second
    lists = [at[0], at[0], at[0], at[1], at[1], at[1]]
    words, positions = (
        made("cogvideox", texts, tiling=tiling, techniques=[DiTCtrl(mask_words=given, **settings)])
        for given in (["cat"], [list(one) for one in lists])
    )
    assert torch.equal(words.frames, positions.frames)
    plain = made("cogvideox", texts, tiling=tiling, techniques=[DiTCtrl(steps="0-")])
    assert not torch.equal(words.frames, plain.frames)
    with pytest.raises(WordNotFoundError, match="'dog'"):
        made("cogvideox", texts, techniques=[DiTCtrl(mask_words=["dog"])])


# --- plans and mistakes -------------------------------------------------------------------------


def test_the_default_overlap_is_that_of_the_authors() -> None:
    assert Tiling().overlap_of(13) == 9
    assert Tiling().overlap_of(16) == 11
    assert Tiling().overlap_of(1) == 0
    plan = plan_long_video(build("wan"), 2)
    assert (plan.tile_frames, plan.length) == (81, 21)
    assert plan.latent_frames == 21 + 3 * (21 - 15)


def test_patches_of_several_frames_need_whole_ones() -> None:
    pipe = build("cogvideox")
    pipe.transformer.register_to_config(patch_size_t=2)
    with pytest.raises(SettingError, match=r"joins 2 of them; take tiles of 13 frames"):
        plan_long_video(pipe, 2, frames=9)
    assert plan_long_video(pipe, 2, frames=13).length == 4


@pytest.mark.parametrize("name", ["sd1", "latte"])
def test_other_pipelines_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="take CogVideoXPipeline, WanPipeline, Animate"):
        check_long_pipeline(build(name))


def test_a_pipeline_that_lays_out_its_own_latents_is_refused() -> None:
    pipe = build("animatediff")
    pipe.enable_free_init(num_iters=1)
    with pytest.raises(UnsupportedModelError, match="disable_free_init"):
        made("animatediff", pipe=pipe)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"prompts": []}, "one or more prompts"),
        ({"prompts": "a cat"}, "one or more prompts"),
        ({"prompts": ["a cat", 3]}, "one or more prompts"),
        ({"tiling": Tiling(3, 1)}, "take 0 to 2"),
        ({"frames": 8}, "take 9"),
        ({"height": 60}, "must be a multiple of 16"),
        ({"latents": None}, "sets latents itself"),
        ({"pairs_at_once": 0}, "whole number from 1"),
    ],
)
def test_mistakes_are_told_before_anything_runs(changes: dict[str, Any], text: str) -> None:
    pipe = build("cogvideox")
    entered: list[int] = []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: entered.append(1))
    with pytest.raises(SettingError, match=text):
        made("cogvideox", pipe=pipe, **changes)
    assert not entered


@pytest.mark.parametrize(
    "settings", [{"overlap": -1}, {"transitions": 1.5}, {"longer_middle": True}], ids=str
)
def test_a_tiling_of_other_numbers_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="must be a whole number from 0"):
        Tiling(**settings)


def test_techniques_that_would_see_the_whole_clip_are_refused() -> None:
    pipe = build("cogvideox")
    with (
        attnctl.attach(pipe, DiTCtrl()),
        pytest.raises(AlreadyAttachedError, match="with techniques="),
    ):
        made("cogvideox", pipe=pipe)


# --- from a recipe ----------------------------------------------------------------------------


def drawn(then: list[str], **changes: Any) -> list[Any]:
    own = {key: changes.pop(key) for key in ("sharing",) if key in changes}
    values = {"model": "tiny", "prompt": "a cat", "seed": 3, "steps": 2, "guidance": 3.0,
              "size": "32x32"}  # fmt: skip
    recipe = Recipe.from_dict(values | changes, name="")
    return list(
        draw_long_videos(build("animatediff"), recipe, then, tiling=Tiling(1, 0), frames=3, **own)
    )


def test_clips_of_a_recipe_carry_their_prompts_and_tiles() -> None:
    first, second = drawn(["a dog"], count=2)
    assert first.video.frames.shape == (5, 32, 32, 3)
    assert [one.recipe.seed for one in (first, second)] == [3, 4]
    assert not np.array_equal(first.video.frames, second.video.frames)
    assert first.record["long_video"] == {
        "then": ["a dog"], "tile_frames": 3, "overlap": 1, "transitions": 0, "longer_middle": 0,
    }  # fmt: skip
    assert [t["name"] for t in first.record["techniques"]] == ["ditctrl"]
    (alone,) = drawn(["a dog"], seed=4)
    assert np.array_equal(alone.video.frames, second.video.frames)


def test_sharing_is_added_once_and_can_be_left_out() -> None:
    (own,) = drawn(["a dog"], techniques=[{"ditctrl": {"steps": "0-"}}])
    assert len(own.record["techniques"]) == 1
    assert own.report.active_steps("ditctrl") == (0, 1)
    (without,) = drawn(["a dog"], sharing=False)
    assert without.record["techniques"] == []
    assert without.report is None


def test_a_recipe_of_several_clips_is_refused() -> None:
    with pytest.raises(SettingError, match="2 prompts, each for a clip of its own"):
        drawn(["a dog"], prompt=["a cat", "a frog"])


def test_the_latents_of_a_clip_start_from_one_noise() -> None:
    """Neighbours see the same noise where they overlap, before and after every step."""
    seen: list[Tensor] = []
    pipe = build("wan")
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _m, _a, k: seen.append(k["hidden_states"].clone()), with_kwargs=True
    )
    made("wan", PROMPTS, pipe, techniques=())
    hook.remove()
    for tiles in seen:
        assert torch.equal(tiles[0][:, 2:], tiles[1][:, :1])
        assert torch.equal(tiles[1], tiles[2])
