"""How terms reach each kind of pipeline: one batch, two calls, three rows, one row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import APG, PAG, SoftPAG
from attnctl.ops.guidance import image_guidance, rescale_deviation
from tests.support.guidance_reference import generate_by
from tests.support.pipelines import build, generate, picture
from tests.techniques.guided_pipelines import (
    GUIDED,
    MID,
    SCALE,
    assert_close,
    away,
    classifier_free,
    run,
    run_by,
    steered,
    steered_like,
)


@pytest.mark.parametrize("name", GUIDED)
def test_a_term_is_added_to_the_guided_prediction(name: str) -> None:
    pipe, formula = build(name), classifier_free(name)
    theirs = run_by(pipe, name, lambda i, b: formula(i, b) + away(2.0, b), perturb=True)
    ours = steered_like(pipe, name, SoftPAG(scale=2.0, where=GUIDED[name].where))
    assert_close(ours, theirs, run(pipe, name))


@pytest.mark.parametrize("name", ["sd3", "pixart_sigma", "flux", "wan", "wan22"])
def test_a_rescale_of_our_own_comes_last(name: str) -> None:
    pipe, formula, where = build(name), classifier_free(name), GUIDED[name].where

    def rescaled(step: int, got: Any) -> Tensor:
        return rescale_deviation(formula(step, got) + away(2.0, got), got["cond"], 0.6)

    theirs = run_by(pipe, name, rescaled, perturb=True)
    ours = steered_like(pipe, name, SoftPAG(scale=2.0, rescale=0.6, where=where))
    assert_close(ours, theirs, steered_like(pipe, name, SoftPAG(scale=2.0, where=where)))


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_the_terms_of_several_techniques_add_up(name: str) -> None:
    pipe, formula, where = build(name), classifier_free(name), GUIDED[name].where
    theirs = run_by(pipe, name, lambda i, b: formula(i, b) + away(3.0, b), perturb=True)
    pair = [PAG(scale=1.0, where=where), SoftPAG(scale=2.0, where=where)]
    assert_close(steered_like(pipe, name, pair), theirs, steered_like(pipe, name, pair[1:]))


@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_three_branches_of_instruct_pix2pix_all_get_the_term(rescale: float) -> None:
    pipe, path = build("sd1_pix2pix"), f"{MID}.0.attn1"
    options = {"image": picture(), "guidance_scale": SCALE, "image_guidance_scale": 1.5}

    def formula(step: int, got: Any) -> Tensor:
        guided = image_guidance(got["cond"], got["image"], got["uncond"], SCALE, 1.5)
        return rescale_deviation(guided + away(2.0, got), got["cond"], rescale)

    theirs = generate_by(pipe, formula, ("cond", "image", "uncond"), (path,), **options)
    ours = steered(pipe, SoftPAG(scale=2.0, rescale=rescale), **options)
    assert_close(ours, theirs, generate(pipe, **options))


@pytest.mark.parametrize("technique", [SoftPAG, APG])
def test_the_layer_skipping_call_of_sd3_gets_what_the_branches_got(technique: type) -> None:
    """The pipeline adds ``2.8 (cond - skipped)``, where both must carry the same addition."""
    pipe, name = build("sd3"), "sd3"
    options = {
        **GUIDED[name].options,
        "skip_guidance_layers": [1],
        "skip_layer_guidance_stop": 1.0,
        "steps": 3,
    }
    is_soft = technique is SoftPAG
    made = SoftPAG(scale=2.0, where=GUIDED[name].where) if is_soft else APG(0.3, 2.0)
    own = classifier_free(name)
    calls: list[bool] = []

    def formula(step: int, got: Any) -> Tensor:
        calls.append("skipped" in got)
        guided = own(step, got) + away(2.0, got) if is_soft else _projected(got)
        return guided + 2.8 * (got["cond"] - got["skipped"]) if "skipped" in got else guided

    theirs = generate_by(pipe, formula, perturbed=GUIDED[name].paths if is_soft else (), **options)
    assert calls == [False, True, True]
    assert_close(steered(pipe, made, **options), theirs, generate(pipe, **options))


def _projected(got: Any) -> Tensor:
    from diffusers.guiders.adaptive_projected_guidance import normalized_guidance

    return normalized_guidance(got["cond"], got["uncond"], SCALE, None, 0.3, 2.0)


@pytest.mark.parametrize("rescale", [0.0, 0.6])
def test_one_call_with_embedded_guidance(rescale: float) -> None:
    pipe, one = build("flux_dev"), GUIDED["flux"]
    seen: list[tuple[int, Tensor]] = []

    def listen(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((len(kwargs["hidden_states"]), kwargs["guidance"].clone()))

    def formula(step: int, got: Any) -> Tensor:
        return rescale_deviation(got["cond"] + away(2.0, got), got["cond"], rescale)

    theirs = generate_by(pipe, formula, ("cond",), one.paths, guidance_scale=2.5)
    technique = SoftPAG(scale=2.0, rescale=rescale, where=one.where)
    assert_close(
        steered(pipe, technique, guidance_scale=2.5), theirs, generate(pipe, guidance_scale=2.5)
    )
    with attnctl.attach(pipe, SoftPAG(where="layers=0,joint")):
        handle = pipe.transformer.register_forward_pre_hook(listen, with_kwargs=True)
        generate(pipe, guidance_scale=2.5)
        handle.remove()
    for rows, guidance in seen:  # the perturbed row has the same guidance as the row it shadows
        assert rows == 2
        assert torch.equal(guidance, torch.full((2,), 2.5))
