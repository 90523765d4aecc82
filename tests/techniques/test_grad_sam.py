"""GradSAM on tiny models: the region of a subject stays, the rest becomes the given scene."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

import attnctl
from attnctl import GradSAM, HeatMaps
from attnctl.editing.trajectories import NoisedTrajectory
from attnctl.errors import (
    AttnctlError,
    ConflictError,
    FeatureError,
    SettingError,
    UnsupportedModelError,
    WordNotFoundError,
)
from attnctl.inversion import noised_trajectory, sampler_of
from attnctl.techniques.keep_outside import KeepOutside
from tests.core.exciting import small
from tests.support.pipelines import build, generate, picture
from tests.support.projections import projected

PROMPT = "a cat and a frog"
STEPS = 5


@cache
def pipe_of(name: str) -> Any:
    pipe: Any = build(name)
    pipe.scheduler = sampler_of(pipe)
    return pipe


@cache
def scene(name: str = "sd1", steps: int = STEPS) -> NoisedTrajectory:
    return noised_trajectory(pipe_of(name), picture(), steps=steps, seed=7)


def run(*techniques: Any, name: str = "sd1", **changes: Any) -> Tensor:
    arguments = {"prompt": PROMPT, "steps": STEPS, **changes}
    if not techniques:
        return generate(pipe_of(name), **arguments)
    with attnctl.attach(pipe_of(name), techniques):
        return generate(pipe_of(name), **arguments)


class KeepingProcessor:
    """Attention with whole maps, which keeps those to the text with their graph."""

    def __init__(self, kept: list[Tensor]) -> None:
        self.kept = kept

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        probs = (attn.scale * query @ key.mT).softmax(-1)
        if encoder_hidden_states is not None:
            self.kept.append(probs)
        return attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))


def reference_region(pipe: Any, latents: Tensor, time: Tensor, text: Tensor, word: int) -> Tensor:
    """Where attention to a word matters for the estimated clean latents, ``(1, 1, h, w)``."""
    kept: list[Tensor] = []
    pipe.unet.set_attn_processor(KeepingProcessor(kept))
    with torch.enable_grad():
        leaf = latents.clone().requires_grad_(True)
        noise = pipe.unet(leaf, time, encoder_hidden_states=text).sample
        share = pipe.scheduler.alphas_cumprod[time]
        clean = (leaf - (1 - share).sqrt() * noise) / share.sqrt()
        gradients = torch.autograd.grad(clean.abs().sum(), kept)
    total = torch.zeros_like(latents[:, :1])
    for probs, gradient in zip(kept, gradients, strict=True):
        scores = (probs * gradient.abs())[..., word].mean(1).detach()
        side = int(scores.shape[1] ** 0.5)
        sized = F.interpolate(scores.view(1, 1, side, side), latents.shape[-2:], mode="bilinear")
        total += sized / sized.max() / len(kept)
    line = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    blurred = F.conv2d(F.pad(total, (3, 3, 3, 3), mode="reflect"), kernel)
    region = (blurred - blurred.min()) / (blurred.max() - blurred.min()) >= 0.5
    return F.max_pool2d(region.float(), 5, stride=1, padding=2) > 0


@torch.no_grad()
def run_reference(marks: tuple[int, ...], last: int, scale: float = 7.5) -> tuple[Tensor, Tensor]:
    """Sample by hand: latents at the end, and the last region."""
    pipe: Any = build("sd1")
    scheduler: Any = DDIMScheduler.from_config(pipe_of("sd1").scheduler.config)
    pipe.scheduler = scheduler
    scheduler.set_timesteps(STEPS)
    text, empty = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    given = scene().clean
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(7))
    region = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    for index, time in enumerate(scheduler.timesteps):
        if index in marks:
            region = reference_region(pipe, latents, time, text, 2)
        both = torch.cat([empty, text])
        made = pipe.unet(torch.cat([latents] * 2), time, encoder_hidden_states=both).sample
        guided = made[:1] + scale * (made[1:] - made[:1])
        latents = scheduler.step(guided, time, latents).prev_sample
        if marks[0] <= index < last:
            noised = scheduler.add_noise(given, noise, scheduler.timesteps[index + 1][None])
            latents = torch.where(region, latents, noised)
    return latents, region


def test_a_whole_run_equals_one_by_hand() -> None:
    truth, region = run_reference((1, 2), 4)
    assert 0 < int(region.sum()) < region.numel()
    technique = GradSAM(["cat"], scene(), mask_steps=(1, 0.4), steps="0-80%")
    ours, plain = run(technique), run()
    assert float((truth - plain).abs().max()) > 1e-1
    assert (ours - truth).abs().max() < 2e-5 * max(1.0, float(truth.abs().max()))


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_a_region_of_everything_changes_no_bit(name: str) -> None:
    everything = GradSAM(["cat"], scene(name), threshold=0.0, steps="always")
    assert torch.equal(run(everything, name=name), run(name=name))


def test_noise_of_the_sampler_and_the_users_generator_are_left_alone() -> None:
    everything = GradSAM(["cat"], scene(), threshold=0.0, steps="always")
    assert torch.equal(run(everything, eta=1.0), run(eta=1.0))


def test_outside_of_the_region_the_scene_remains_at_the_end() -> None:
    peak = GradSAM(["cat"], scene(), threshold=1.0, sigma=0, dilations=0, steps="always")
    made, clean = run(peak), scene().clean
    other = (made != clean).any(1)
    assert int(other.sum()) == 1
    with attnctl.attach(pipe_of("sd1"), peak) as session:
        generate(pipe_of("sd1"), PROMPT, STEPS)
    report = str(session.report())
    assert "step 1: grad-sam keeps 0% of the picture" in report  # one of 256 cells
    assert session.report().active_steps("grad-sam") == tuple(range(STEPS))


@pytest.mark.parametrize(
    "off",
    [
        {"trajectory": None},
        {"subjects": ()},
        {"mask_steps": ()},
        {"mask_steps": (0.9,)},
        {"steps": "0-0"},
        {"steps": attnctl.ramp(0.0, 0.0)},
    ],
    ids=["no scene", "no subject", "no mask", "mask behind the window", "no steps", "strength 0"],
)
def test_off_changes_no_bit(off: dict[str, Any]) -> None:
    technique = GradSAM(**{"subjects": ["cat"], "trajectory": scene(), **off})
    assert torch.equal(run(technique), run())


def test_before_the_first_mask_nothing_is_replaced() -> None:
    late = GradSAM(["cat"], scene(), mask_steps=(3,))
    seen: list[Tensor] = []

    def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].clone())
        return values

    run(late, callback_on_step_end=keep)
    run(callback_on_step_end=keep)
    same = [torch.equal(a, b) for a, b in zip(seen[:STEPS], seen[STEPS:], strict=True)]
    assert same == [True, True, True, False, False]


def test_single_heads_and_other_gradients_give_other_regions() -> None:
    usual = run(GradSAM(["cat"], scene()))
    assert not torch.equal(run(GradSAM(["cat"], scene(), where="cross,heads=0")), usual)
    assert not torch.equal(run(GradSAM(["cat"], scene(), relu=True)), usual)
    assert not torch.equal(run(GradSAM(["frog"], scene())), usual)


def test_pictures_of_a_batch_have_regions_of_their_own() -> None:
    prompts = [PROMPT, "a red dog on the blue photo"]
    both = run(GradSAM([["cat"], ["dog"]], scene()), prompt=prompts)
    first = run(GradSAM(["cat"], scene()))
    second = run(GradSAM(["dog"], scene()), prompt=prompts[1], seed=1)
    assert torch.allclose(both, torch.cat([first, second]), atol=2e-4)


def test_it_shares_the_gradient_forward_with_attend_and_excite() -> None:
    excited = small(steps="0-3")
    alone = run(excited)
    everything = GradSAM(["cat"], scene(), threshold=0.0, mask_steps=(1, 4), steps="always")
    assert torch.allclose(run(everything, excited), alone, atol=1e-5)
    both = run(GradSAM(["cat"], scene()), excited)
    assert torch.isfinite(both).all()
    assert not torch.allclose(both, run(GradSAM(["cat"], scene())), atol=1e-3)


def test_heat_maps_beside_it_change_nothing_and_a_second_overwriter_is_refused() -> None:
    technique = GradSAM(["cat"], scene())
    assert torch.equal(run(HeatMaps(), technique), run(technique))
    mask = torch.ones(4, 16, 16)
    with pytest.raises(ConflictError, match="to write the latents after the step"):
        run(technique, KeepOutside(mask), prompt=[PROMPT] * 2)


def test_a_run_from_a_picture_with_noise_uses_the_same_levels() -> None:
    pipe: Any = build("sd1_img2img")
    pipe.scheduler = sampler_of(pipe)
    plain = generate(pipe, PROMPT, STEPS, strength=0.8)
    with attnctl.attach(pipe, GradSAM(["cat"], scene())) as session:
        made = generate(pipe, PROMPT, STEPS, strength=0.8)
    assert session.report().active_steps("grad-sam") == (0, 1, 2, 3)
    assert not torch.equal(made, plain)


def test_joint_attention_finds_a_region_too() -> None:
    technique = GradSAM(["cat"], scene("sd3"))
    made = run(technique, name="sd3")
    assert torch.isfinite(made).all()
    assert not torch.equal(made, run(name="sd3"))


@pytest.mark.parametrize(
    ("settings", "changes", "error", "text"),
    [
        ({"subjects": ["bird"]}, {}, WordNotFoundError, "grad-sam: subjects: 'bird' is not"),
        ({"subjects": [99]}, {}, SettingError, "there is no token 99"),
        ({}, {"height": 48, "width": 48}, FeatureError, "the run 1 of \\(4, 24, 24\\)"),
        ({}, {"steps": 4}, FeatureError, "no latents at timestep"),
        ({"subjects": [["cat"], ["frog"]]}, {}, SettingError, "2 lists for 1 pictures"),
        ({"where": "self"}, {}, UnsupportedModelError, "is self attention"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(
    settings: dict[str, Any], changes: dict[str, Any], error: type[AttnctlError], text: str
) -> None:
    technique = GradSAM(**{"subjects": ["cat"], "trajectory": scene(), **settings})
    with pytest.raises(error, match=text):
        run(technique, **changes)


def test_other_samplers_and_clips_are_refused() -> None:
    from diffusers import EulerDiscreteScheduler

    pipe: Any = build("sd1")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    technique = GradSAM(["cat"], scene())
    with (
        attnctl.attach(pipe, technique),
        pytest.raises(FeatureError, match=r"levels of DDIMScheduler.*EulerDiscreteScheduler"),
    ):
        generate(pipe, PROMPT, STEPS)
    moving: Any = build("animatediff")
    with (
        attnctl.attach(moving, technique),
        pytest.raises(UnsupportedModelError, match="works on pictures"),
    ):
        generate(moving, PROMPT)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"subjects": [-1]}, "must be words or token positions"),
        ({"mask_steps": (1.5,)}, "fraction of the run such as 0.3"),
        ({"threshold": -0.1}, "from 0 to 1"),
        ({"sigma": float("nan")}, "finite number from 0"),
        ({"dilations": 1.5}, "whole number from 0"),
        ({"trajectory": "scene.png"}, "noised_trajectory"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        GradSAM(**settings)


def test_settings_build_it_again() -> None:
    made = GradSAM([["cat"], ["frog", 2]], mask_steps=("20%", 3), relu=True)
    assert GradSAM.from_settings(made.settings()) == made
