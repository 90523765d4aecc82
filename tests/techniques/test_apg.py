"""Adaptive projected guidance against diffusers' own formula in each pipeline's own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from torch import Tensor

import attnctl
from attnctl import APG, SoftPAG
from attnctl.errors import ConflictError, SettingError, UnsupportedModelError
from tests.support.guidance_reference import Formula
from tests.support.pipelines import build, generate, picture
from tests.techniques.guided_pipelines import GUIDED, STEPS, away, classifier_free, run, run_by

EXACT = 1e-5  # of the largest latent
# Of these random models' predictions, it clips some differences and leaves others.
TIGHT = {"eta": 0.3, "norm_threshold": 2.0}


def projected(name: str, eta: float, norm_threshold: float, momentum: float = 0.0) -> Formula:
    buffer = MomentumBuffer(momentum) if momentum else None
    scales = GUIDED[name].scales
    return lambda step, got: normalized_guidance(
        got["cond"], got["uncond"], scales[step], buffer, eta, norm_threshold
    )


def steered(pipe: Any, name: str, techniques: Any, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, techniques):
        return run(pipe, name, **changes)


def assert_close(ours: Tensor, theirs: Tensor, plain: Tensor, *, exact: float = EXACT) -> None:
    size = float(theirs.abs().max())
    assert (theirs - plain).abs().max() > 30 * exact * size
    assert (ours - theirs).abs().max() < exact * size


@pytest.mark.parametrize("name", GUIDED)
def test_it_equals_the_formula_of_diffusers(name: str) -> None:
    pipe = build(name)
    theirs = run_by(pipe, name, projected(name, **TIGHT))
    assert_close(steered(pipe, name, APG(**TIGHT)), theirs, run(pipe, name))


@pytest.mark.parametrize("name", ["sd1", "sd3", "wan"])
def test_momentum_equals_the_buffer_of_diffusers(name: str) -> None:
    pipe, technique = build(name), APG(**TIGHT, momentum=-0.5)
    theirs = run_by(pipe, name, projected(name, **TIGHT, momentum=-0.5))
    without = steered(pipe, name, APG(**TIGHT))
    first, second = (steered(pipe, name, technique) for _ in range(2))
    assert_close(first, theirs, without)
    assert torch.equal(first, second)  # nothing is carried from run to run


@pytest.mark.parametrize("name", GUIDED)
def test_without_a_limit_and_with_the_whole_parallel_part_it_is_plain_guidance(name: str) -> None:
    pipe = build(name)
    plain = run(pipe, name)
    ours = steered(pipe, name, APG(eta=1.0, norm_threshold=0.0))
    assert (ours - plain).abs().max() < EXACT * plain.abs().max()


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_perturbation_term_is_added_after_it(name: str, is_first: bool) -> None:
    pipe, formula = build(name), projected(name, **TIGHT)
    theirs = run_by(pipe, name, lambda i, b: formula(i, b) + away(2.0, b), perturb=True)
    pair = [APG(**TIGHT), SoftPAG(scale=2.0, where=GUIDED[name].where)]
    ours = steered(pipe, name, pair if is_first else pair[::-1])
    assert_close(ours, theirs, run_by(pipe, name, formula), exact=2 * EXACT)


@pytest.mark.parametrize("name", ["sd1", "wan"])
def test_outside_its_window_every_step_is_bit_identical(name: str) -> None:
    pipe = build(name)
    latents: dict[str, list[Tensor]] = {"plain": [], "late": []}

    def keep(which: str) -> Any:
        def callback(pipe: Any, index: int, timestep: Any, got: dict[str, Any]) -> dict[str, Any]:
            latents[which].append(got["latents"].clone())
            return got

        return callback

    run(pipe, name, callback_on_step_end=keep("plain"))
    technique = APG(**TIGHT, steps=attnctl.after(STEPS - 1))
    steered(pipe, name, technique, callback_on_step_end=keep("late"))
    same = [torch.equal(a, b) for a, b in zip(latents["plain"], latents["late"], strict=True)]
    assert same == [True] * (STEPS - 1) + [False]


def test_in_a_ramp_it_is_blended_with_the_pipelines_formula() -> None:
    pipe, name = build("sd1"), "sd1"
    own, formula = classifier_free(name), projected(name, **TIGHT)
    weights = (1.0, 0.5, 0.0)
    theirs = run_by(pipe, name, lambda i, b: own(i, b) + weights[i] * (formula(i, b) - own(i, b)))
    ours = steered(pipe, name, APG(**TIGHT, steps="always ramp 1..0 linear"))
    assert_close(ours, theirs, run(pipe, name))


@pytest.mark.parametrize("name", ["sd1", "flux", "wan"])
def test_without_guidance_it_changes_nothing_and_says_so(name: str) -> None:
    pipe = build(name)
    options = {"guidance_scale": 1.0} if name != "flux" else {}
    plain = generate(pipe, **options)
    with attnctl.attach(pipe, APG(**TIGHT)) as session:
        assert torch.equal(generate(pipe, **options), plain)
    assert any("apg: no effect" in text for text in session.report().warnings)
    assert session.report().active_steps("apg") == ()


def test_the_report_says_at_which_steps_it_acted() -> None:
    pipe = build("sd1")
    with attnctl.attach(pipe, APG(steps=attnctl.until(2))) as session:
        run(pipe, "sd1")
    assert session.report().active_steps("apg") == (0, 1)
    assert session.report().warnings == []


def test_batch_equals_singles() -> None:
    pipe, prompts = build("sd1"), ["a cat and a frog", "a red dog"]
    technique = APG(**TIGHT, momentum=-0.5)
    both = steered(pipe, "sd1", technique, prompt=prompts)
    for place, prompt in enumerate(prompts):
        one = steered(pipe, "sd1", technique, prompt=prompt, seed=place)
        assert torch.allclose(both[place], one[0], atol=2e-4)


@pytest.mark.parametrize("name", ["sd1", "wan"])
def test_half_precision_stays_close(name: str) -> None:
    pipe = build(name)
    exact = steered(pipe, name, APG(**TIGHT))
    rounded = steered(pipe.to(torch.bfloat16), name, APG(**TIGHT))
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_it_refuses_a_second_formula() -> None:
    with pytest.raises(ConflictError, match="guidance formula"):
        attnctl.attach(build("sd1"), [APG(), attnctl.CFGZeroStar()])
    parts = [APG(steps=attnctl.until(1)), attnctl.CFGZeroStar(steps=attnctl.after(1))]
    attnctl.attach(build("sd1"), parts).detach()


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("sd1_pix2pix", {"image": picture()}, "two guidance branches"),
        ("wan", {"guidance_scale": 1.05}, "at least 1.1"),
        ("cogvideox", {"use_dynamic_cfg": True}, "use_dynamic_cfg=False"),
    ],
)
def test_it_refuses_what_it_cannot_join_before_any_forward(
    name: str, options: dict[str, Any], text: str
) -> None:
    pipe = build(name)
    calls: list[int] = []
    model = getattr(pipe, "unet", None) or pipe.transformer
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with (
        attnctl.attach(pipe, APG()),
        pytest.raises(UnsupportedModelError, match=text),
    ):
        generate(pipe, **options)
    handle.remove()
    assert calls == []


def test_it_refuses_a_loop_that_it_cannot_see_into() -> None:
    unet = build("sd1").unet
    inputs = torch.randn(2, 4, 16, 16), 10, torch.randn(2, 77, 32)
    with (
        attnctl.attach(unet, APG(), branches=("uncond", "cond")),
        pytest.raises(UnsupportedModelError, match="outside a call of its pipeline"),
    ):
        unet(*inputs)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"eta": -0.1}, "eta"),
        ({"eta": 1.5}, "from 0 to 1"),
        ({"norm_threshold": -1.0}, "norm_threshold"),
        ({"momentum": 2.0}, "from -1 to 1"),
        ({"momentum": float("nan")}, "finite"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        APG(**settings)
