"""How terms and formulas reach each kind of pipeline: one batch, two calls, three rows, one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPAGPipeline,
)
from diffusers.models.attention_processor import Attention
from torch import Tensor

import attnctl
from attnctl import APG, PAG, SoftPAG, Technique
from attnctl.calls import PredictionCall
from attnctl.errors import AttnctlError, UnsupportedModelError
from attnctl.families import _families, find_family
from attnctl.ops.guidance import image_guidance, rescale_deviation
from tests.support.guidance_reference import generate_by
from tests.support.pipelines import build, generate, picture
from tests.support.pipelines.calls import ARGUMENTS, square
from tests.support.pipelines.parts import edges
from tests.techniques.guided_pipelines import (
    GUIDED,
    MID,
    SCALE,
    away,
    classifier_free,
    run,
    run_by,
)

EXACT = 5e-6  # of the largest latent


def steered(pipe: Any, techniques: Any, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **changes)


def steered_like(pipe: Any, name: str, techniques: Any) -> Tensor:
    with attnctl.attach(pipe, techniques):
        return run(pipe, name)


def assert_close(ours: Tensor, theirs: Tensor, other: Tensor) -> None:
    size = float(theirs.abs().max())
    assert (theirs - other).abs().max() > 50 * EXACT * size
    assert (ours - theirs).abs().max() < EXACT * size


# --- against the pipelines of diffusers -----------------------------------------------------


def sdxl_controlnet() -> StableDiffusionXLControlNetPipeline:
    parts = build("sdxl").components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(
            parts["unet"], conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
        ).eval()
        for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
            block.weight.data.normal_(std=0.1)
        control.controlnet_cond_embedding.conv_out.weight.data.normal_(std=0.1)
    return StableDiffusionXLControlNetPipeline(**parts, controlnet=control, add_watermarker=False)


PEERS: dict[str, tuple[Callable[[], Any], type, tuple[float, ...]]] = {
    "sd1": (lambda: build("sd1"), StableDiffusionPAGPipeline, (0.0, 0.7)),
    "sdxl": (lambda: build("sdxl"), StableDiffusionXLPAGPipeline, (0.0, 0.7)),
    "sd1_controlnet": (
        lambda: build("sd1_controlnet"),
        StableDiffusionControlNetPAGPipeline,
        (0.0,),
    ),
    "sdxl_controlnet": (sdxl_controlnet, StableDiffusionXLControlNetPAGPipeline, (0.0,)),
}


@pytest.fixture(autouse=True)
def _peers_are_called_like_their_kin(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, peer, _ in PEERS.values():
        monkeypatch.setitem(ARGUMENTS, peer.__name__, square)
    control = StableDiffusionXLControlNetPipeline.__name__
    monkeypatch.setitem(ARGUMENTS, control, lambda: square(image=edges()))


def peer_of(case: str, pipe: Any) -> Any:
    peer = PEERS[case][1]
    wanted = peer.__init__.__code__.co_varnames  # type: ignore[misc]
    parts = {name: part for name, part in pipe.components.items() if name in wanted}
    extra = {} if "sdxl" in case else {"requires_safety_checker": False}
    made = peer(**parts, **extra, pag_applied_layers=["mid"])
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(
    ("case", "rescale"), [(case, one) for case in PEERS for one in PEERS[case][2]]
)
def test_pag_equals_the_pipeline_of_diffusers(case: str, rescale: float) -> None:
    pipe = PEERS[case][0]()
    options = {"steps": 3, **({"guidance_rescale": rescale} if rescale else {})}
    plain = generate(pipe, **options)
    ours = steered(pipe, PAG(scale=3.0), **options)
    image = {"image": edges()} if "controlnet" in case else {}
    theirs = generate(peer_of(case, pipe), pag_scale=3.0, **image, **options)
    assert_close(ours, theirs, plain)


@pytest.mark.parametrize("case", ["sd1", "sdxl"])
def test_a_rescale_of_our_own_equals_the_pipelines(case: str) -> None:
    pipe = build(case)
    theirs = generate(peer_of(case, pipe), pag_scale=3.0, guidance_rescale=0.7)
    ours = steered(pipe, PAG(scale=3.0, rescale=0.7))
    assert_close(ours, theirs, steered(pipe, PAG(scale=3.0)))
    larger = steered(pipe, PAG(scale=3.0, rescale=0.7), guidance_rescale=0.3)
    assert_close(larger, theirs, steered(pipe, PAG(scale=3.0), guidance_rescale=0.3))


# --- against a formula at the scheduler ------------------------------------------------------


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


# --- replacing the formula -------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed(Technique):
    """Guides by a scale of its own."""

    name: ClassVar[str] = "fixed"
    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})
    scale: float = 4.0

    def edit_prediction(self, call: PredictionCall) -> None:
        cond, uncond = call.get("cond").float(), call.get("uncond").float()
        call.own(uncond + self.scale * (cond - uncond))


@dataclass(frozen=True)
class Unclaimed(Fixed):
    """The same, without saying so."""

    name: ClassVar[str] = "unclaimed"
    claims: ClassVar[frozenset[str]] = frozenset()


@pytest.mark.parametrize("name", ["sd1", "sd3", "wan"])
def test_a_formula_of_our_own_does_not_depend_on_the_pipelines_scale(name: str) -> None:
    pipe = build(name)
    small, large = (steered(pipe, Fixed(), guidance_scale=s) for s in (1.5, 9.0))
    own = generate(pipe, guidance_scale=4.0)
    assert_close(small, own, generate(pipe, guidance_scale=1.5))
    assert_close(large, own, generate(pipe, guidance_scale=9.0))
    if name != "wan":  # batched: the pipeline gets the same rows whatever its scale
        assert torch.equal(small, large)


def test_a_formula_of_our_own_passes_the_pipelines_rescaling() -> None:
    pipe = build("sd1")
    ours = steered(pipe, Fixed(), guidance_scale=9.0, guidance_rescale=0.7)
    theirs = generate(pipe, guidance_scale=4.0, guidance_rescale=0.7)
    assert_close(ours, theirs, generate(pipe, guidance_scale=9.0, guidance_rescale=0.7))


def test_replacing_the_formula_needs_the_claim() -> None:
    with pytest.raises(AttnctlError, match="add 'guidance' to its claims"):
        steered(build("sd1"), Unclaimed())


# --- what cannot be exact --------------------------------------------------------------------


@pytest.fixture
def renormalising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lumina 2, which brings the norm of its guided prediction back to that of ``cond``."""
    pipe = build("lumina2")
    family = replace(
        find_family(pipe.transformer),
        name="Lumina 2",
        classes=("Lumina2Transformer2DModel",),
        separate=True,
        combine="renormalised",
    )
    monkeypatch.setitem(_families, "Lumina2Transformer2DModel", family)
    return pipe


def test_a_renormalising_pipeline_gets_the_term_and_a_warning(renormalising: Any) -> None:
    plain = generate(renormalising)
    with attnctl.attach(renormalising, SoftPAG(where="layers=1")) as session:
        out = generate(renormalising)
    assert not torch.equal(out, plain)
    warnings = session.report().warnings
    assert len([text for text in warnings if "the norm includes the added term" in text]) == 1


@pytest.mark.parametrize("technique", [APG(), SoftPAG(rescale=0.5, where="layers=1")])
def test_a_renormalising_pipeline_refuses_other_formulas(
    renormalising: Any, technique: Technique
) -> None:
    with pytest.raises(UnsupportedModelError, match="renormalises"):
        steered(renormalising, technique)


class Latents(torch.nn.Module):
    """A denoiser that takes a list of pictures, with one attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(8, heads=2, dim_head=4)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor]]:
        return ([self.attn1(one[None])[0] for one in x],)


@pytest.mark.parametrize("technique", [APG(), SoftPAG(where="layers=0")])
def test_a_denoiser_of_lists_is_refused_with_the_reason(technique: Technique) -> None:
    model = Latents()
    with (
        attnctl.attach(model, technique),
        pytest.raises(UnsupportedModelError, match="Latents takes its latents as a list"),
    ):
        model([torch.randn(6, 8)])


@pytest.mark.parametrize("technique", [SoftPAG(scale=0, rescale=0.7), APG(steps="5-9")])
def test_off_is_identical_and_costs_no_forward(technique: Technique) -> None:
    pipe, calls = build("sd1"), list[int]()
    plain = generate(pipe, guidance_rescale=0.3)
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    conv = pipe.unet.conv_in.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    assert torch.equal(steered(pipe, technique, guidance_rescale=0.3), plain)
    handle.remove()
    conv.remove()
    assert calls == [2, 1, 2, 1]
