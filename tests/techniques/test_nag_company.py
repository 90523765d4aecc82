"""NAG with what a pipeline may bring along, and beside other techniques."""

from __future__ import annotations

import pytest
import torch

import attnctl
from attnctl import NAG
from attnctl.errors import UnsupportedModelError
from tests.core.claims import SAMPLES
from tests.support.pipelines import PROMPT, build, generate, ip_adapter_state, lora_state, picture
from tests.techniques.nag_runs import NEGATIVE, assert_close, encoded, steered

# --- what a pipeline may bring along -----------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux", "sd3"])
def test_batch_equals_singles(name: str) -> None:
    pipe = build(name)
    prompts = ["a cat and a frog", "a blue photo"]
    both = steered(pipe, prompt=prompts)
    for place, prompt in enumerate(prompts):
        one = steered(pipe, prompt=prompt, seed=place)
        assert torch.allclose(both[place], one[0], atol=5e-4)


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma", "flux", "sd3"])
def test_several_images_of_one_prompt(name: str) -> None:
    pipe = build(name)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = steered(pipe, num_images_per_prompt=2, generator=generators)
    for place in (0, 1):
        one = steered(pipe, seed=place)
        assert torch.allclose(both[place], one[0], atol=5e-4)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma", "wan", "flux", "sd3"])
def test_the_negative_prompt_is_encoded_as_the_pipeline_does(name: str) -> None:
    pipe = build(name)
    limits = {"max_sequence_length": 16} if name in ("pixart_sigma", "wan", "flux", "sd3") else {}
    made = encoded(pipe, NEGATIVE, **limits)
    places = {"pixart_sigma": {"encoder_attention_mask": 1}}.get(name, {})
    places |= {"flux": {"pooled_projections": 1}, "sd3": {"pooled_projections": 2}}.get(name, {})
    embeds = {k: made[i] for k, i in {"encoder_hidden_states": 0, **places}.items()}
    assert torch.equal(steered(pipe), steered(pipe, NAG(negative_embeds=embeds)))


def test_a_pipeline_that_cannot_encode_is_given_the_embeddings() -> None:
    pipe = build("sd1_pix2pix")
    embeds = {"encoder_hidden_states": encoded(build("sd1"), NEGATIVE)[0]}
    with pytest.raises(UnsupportedModelError, match=r"InstructPix2Pix.*negative_embeds"):
        steered(pipe)
    assert not torch.equal(steered(pipe, NAG(negative_embeds=embeds)), generate(pipe))


def test_adapters_make_the_negative_keys_too() -> None:
    pipe = build("sd1")
    pipe.load_lora_weights(lora_state(pipe.unet))
    pipe.load_ip_adapter(ip_adapter_state(pipe.unet), subfolder="", weight_name="")
    given = {"ip_adapter_image": picture(), "cross_attention_kwargs": {"scale": 0.5}}
    plain = generate(pipe, **given)
    same = steered(pipe, NAG(PROMPT), **given)
    assert_close(same, plain, steered(pipe, **given))
    assert torch.equal(generate(pipe, **given), plain)


def test_a_fused_projection_makes_the_negative_keys_too() -> None:
    pipe = build("sd1")
    expected = steered(pipe)
    pipe.unet.fuse_qkv_projections()
    assert torch.allclose(steered(pipe), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sd1_img2img", "sd1_inpaint9", "sd1_controlnet"])
def test_kindred_pipelines_are_guided(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    assert_close(steered(pipe, NAG(PROMPT)), plain, steered(pipe))


def test_both_transformers_of_wan_are_guided() -> None:
    pipe = build("wan22")
    with attnctl.attach(pipe, [NAG(NEGATIVE)]) as session:
        generate(pipe, steps=4)
        sites = {entry.site.split(".")[0] for entry in session.report().entries}
    assert sites == {"transformer", "transformer_2"}


def test_a_pipeline_without_guidance_needs_no_more_than_few_steps() -> None:
    pipe = build("flux")
    assert not torch.equal(steered(pipe, steps=1), generate(pipe, steps=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_half_precision_stays_what_it_is(name: str, dtype: torch.dtype) -> None:
    pipe = build(name).to(dtype)
    out = steered(pipe)
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


# --- beside other techniques -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma", "flux", "sd3"])
def test_a_row_that_shadows_the_conditional_one_is_guided_like_it(name: str) -> None:
    pipe = build(name)
    where = "layers=0,joint" if name in ("flux", "sd3") else "layers=0,self"
    barely = attnctl.SoftPAG(scale=1.0, strength=1e-7, where=where)
    alone, both = steered(pipe), steered(pipe, NAG(NEGATIVE), barely)
    assert_close(both, alone, generate(pipe))


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_pag_beside_nag_perturbs_the_guided_model(name: str) -> None:
    pipe = build(name)
    where = "layers=1,joint" if name == "flux" else "mid:self"
    pag = attnctl.PAG(where=where)
    both = steered(pipe, NAG(NEGATIVE), pag)
    assert not torch.allclose(both, steered(pipe), atol=1e-5)
    assert not torch.allclose(both, steered(pipe, pag), atol=1e-5)
    same = steered(pipe, NAG(PROMPT), pag)
    assert torch.allclose(same, steered(pipe, pag), atol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_heat_maps_read_the_prompt_and_change_nothing(name: str) -> None:
    pipe = build(name)
    alone = steered(pipe)
    with attnctl.attach(pipe, [NAG(NEGATIVE), attnctl.HeatMaps()]) as session:
        for _ in range(2):  # the negative prompt of one run is not the prompt of the next
            assert torch.allclose(generate(pipe), alone, atol=1e-6)
            assert session.maps.word("frog").shape[-1] > 1
            with pytest.raises(ValueError, match="dog"):
                session.maps.word("dog")


def test_attend_and_excite_looks_at_the_guided_model() -> None:
    pipe = build("sd1")
    exciting = attnctl.AttendAndExcite(["cat", "frog"], thresholds={})
    both = steered(pipe, NAG(NEGATIVE), exciting)
    assert not torch.allclose(both, steered(pipe, exciting), atol=1e-5)
    assert not torch.allclose(both, steered(pipe), atol=1e-5)
    assert torch.allclose(steered(pipe, NAG(PROMPT), exciting), steered(pipe, exciting), atol=1e-4)


@pytest.mark.parametrize("other", SAMPLES, ids=lambda kind: kind.name)
def test_nothing_that_others_claim_stands_against_it(other: type[attnctl.Technique]) -> None:
    pipe = build("sd1")
    for techniques in (
        (NAG(NEGATIVE), other(where="cross")),
        (other(where="cross"), NAG(NEGATIVE)),
    ):
        attnctl.attach(pipe, techniques).detach()
