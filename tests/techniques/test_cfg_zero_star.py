"""CFG-Zero* against diffusers' own scale in each pipeline's own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from torch import Tensor

import attnctl
from attnctl import CFGZeroStar, SoftPAG
from attnctl.errors import SettingError, UnsupportedModelError
from tests.support.guidance_reference import Formula
from tests.support.pipelines import build, generate
from tests.techniques.guided_pipelines import GUIDED, STEPS, away, run, run_by

EXACT = 1e-5  # of the largest latent
FLOWS = ("sd3", "flux", "wan", "wan22")


def zero_star(name: str, zero_steps: int) -> Formula:
    scales = GUIDED[name].scales

    def formula(step: int, got: Any) -> Tensor:
        cond, uncond = got["cond"], got["uncond"]
        if step < zero_steps:
            return torch.zeros_like(cond)
        factor = cfg_zero_star_scale(cond.flatten(1), uncond.flatten(1))
        uncond = uncond * factor.view(-1, *[1] * (cond.dim() - 1))
        return uncond + scales[step] * (cond - uncond)

    return formula


def steered(pipe: Any, name: str, techniques: Any, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, techniques):
        return run(pipe, name, **changes)


def assert_close(ours: Tensor, theirs: Tensor, other: Tensor) -> None:
    size = float(theirs.abs().max())
    assert (theirs - other).abs().max() > 30 * EXACT * size
    assert (ours - theirs).abs().max() < EXACT * size


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("zero_steps", [0, 1, 2])
def test_it_equals_the_formula_of_diffusers_on_flow_models(name: str, zero_steps: int) -> None:
    pipe = build(name)
    theirs = run_by(pipe, name, zero_star(name, zero_steps))
    ours = steered(pipe, name, CFGZeroStar(zero_steps=zero_steps))
    assert_close(ours, theirs, run(pipe, name))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma"])
def test_it_equals_the_formula_of_diffusers_on_noise_models(name: str) -> None:
    pipe = build(name)
    theirs = run_by(pipe, name, zero_star(name, 0))
    assert_close(steered(pipe, name, CFGZeroStar(zero_steps=0)), theirs, run(pipe, name))


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_perturbation_term_is_added_after_it(name: str, is_first: bool) -> None:
    pipe, formula = build(name), zero_star(name, 1)
    theirs = run_by(pipe, name, lambda i, b: formula(i, b) + away(2.0, b), perturb=True)
    pair = [CFGZeroStar(), SoftPAG(scale=2.0, where=GUIDED[name].where)]
    ours = steered(pipe, name, pair if is_first else pair[::-1])
    assert_close(ours, theirs, run_by(pipe, name, formula))


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_zero_step_leaves_the_latents_of_a_flow_where_they_are(name: str) -> None:
    pipe = build(name)
    seen: list[Tensor] = []

    def callback(pipe: Any, index: int, timestep: Any, got: dict[str, Any]) -> dict[str, Any]:
        seen.append(got["latents"].clone())
        return got

    steered(pipe, name, CFGZeroStar(zero_steps=2), callback_on_step_end=callback)
    assert torch.allclose(seen[0], seen[1], atol=1e-6)
    assert not torch.allclose(seen[1], seen[2], atol=1e-2)


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_outside_its_window_it_is_bit_identical(name: str) -> None:
    pipe = build(name)
    technique = CFGZeroStar(steps=attnctl.after(STEPS))
    assert torch.equal(steered(pipe, name, technique), run(pipe, name))


def test_a_window_that_begins_later_has_no_zero_steps() -> None:
    pipe, name = build("sd3"), "sd3"
    late = attnctl.after(1)
    ours = steered(pipe, name, CFGZeroStar(steps=late))
    assert torch.equal(ours, steered(pipe, name, CFGZeroStar(zero_steps=0, steps=late)))
    assert not torch.equal(ours, run(pipe, name))


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_without_guidance_it_changes_nothing_and_says_so(name: str) -> None:
    pipe = build(name)
    options = {"guidance_scale": 1.0} if name != "flux" else {}
    plain = generate(pipe, **options)
    with attnctl.attach(pipe, CFGZeroStar()) as session:
        assert torch.equal(generate(pipe, **options), plain)
    assert any("cfg-zero-star: no effect" in text for text in session.report().warnings)


def test_a_zero_step_that_the_pipeline_would_rescale_is_refused() -> None:
    pipe = build("sd1")
    with pytest.raises(UnsupportedModelError, match="guidance_rescale=0"):
        steered(pipe, "sd1", CFGZeroStar(), guidance_rescale=0.7)
    rescaled = steered(pipe, "sd1", CFGZeroStar(zero_steps=0), guidance_rescale=0.7)
    assert torch.isfinite(rescaled).all()


@pytest.mark.parametrize("zero_steps", [-1, 1.0, True, "1"])
def test_a_bad_number_of_zero_steps_is_refused(zero_steps: Any) -> None:
    with pytest.raises(SettingError, match="zero_steps"):
        CFGZeroStar(zero_steps=zero_steps)
