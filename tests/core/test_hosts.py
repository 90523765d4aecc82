"""What a user's pipeline may be besides plain: batches, adapters, offloading, other dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from attnctl import HeatMaps, attach
from attnctl.errors import ForeignProcessorError
from tests.core.samples import Temperature
from tests.core.steering import steered, steering
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate, ip_adapter_state, lora_state, picture

PROMPTS = ["a cat and a frog", "a cat on the red photo"]
VARIANTS = ("sd1", "sd1_img2img", "sd1_inpaint", "sd1_inpaint9", "sd1_controlnet", "sdxl")
ADAPTED = ("sd1", "sdxl", "sd1_controlnet")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_steered_and_restored(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    before = fingerprint(pipe)
    ours, session = steered(pipe)
    report = session.report()

    assert ours.isfinite().all()
    assert (ours - plain).abs().max() > 1e-3
    assert [entry.step for entry in report.losses] == [0, 1]
    assert session.maps.word("cat").isfinite().all()
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(plain, generate(pipe))


@pytest.mark.parametrize("name", VARIANTS)
def test_several_prompts_in_a_batch_equal_single_runs(name: str) -> None:
    pipe = build(name)
    both, session = steered(pipe, PROMPTS)
    heat = [session.maps.word("cat", item=item) for item in range(2)]
    for item, prompt in enumerate(PROMPTS):
        single, session = steered(pipe, prompt, seed=item)
        assert torch.allclose(both[item], single[0], atol=1e-3 * single.abs().max())
        assert torch.allclose(heat[item], session.maps.word("cat"), atol=1e-2)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "pixart_alpha"])
def test_pictures_of_one_prompt_equal_single_runs(name: str) -> None:
    pipe = build(name)
    side = 16
    noise = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(7))
    technique = Temperature(factor=2.0)
    with attach(pipe, technique):
        both = generate(pipe, num_images_per_prompt=2, latents=noise)
        singles = [generate(pipe, latents=noise[i : i + 1]) for i in range(2)]

    assert torch.allclose(both, torch.cat(singles), atol=1e-4 * both.abs().max())


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        UniPCMultistepScheduler,
    ],
)
@pytest.mark.parametrize("name", ["sd1", "sd1_img2img"])
def test_other_schedulers_are_steered(name: str, scheduler: Any) -> None:
    pipe = build(name)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = generate(pipe, steps=3)
    ours, session = steered(pipe, steps=3)

    assert session.report().total == 3
    assert (ours - plain).abs().max() > 1e-3
    assert torch.equal(plain, generate(pipe, steps=3))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux", "wan", "animatediff"])
def test_bfloat16_is_steered_and_off_is_bitwise_plain(name: str) -> None:
    pipe = build(name).to(torch.bfloat16)
    plain = generate(pipe)
    with attach(pipe, [Temperature(steps="0-0"), HeatMaps()]) as session:
        assert torch.equal(plain, generate(pipe))
        assert session.maps.word("cat").dtype == torch.float32
    with attach(pipe, Temperature()):
        ours = generate(pipe)

    assert ours.dtype == plain.dtype
    assert ours.isfinite().all()
    assert not torch.equal(plain, ours)


def test_a_pipeline_may_move_to_another_dtype_while_attached() -> None:
    pipe, fresh = build("sd1"), build("sd1").to(torch.bfloat16)
    with attach(fresh, Temperature()):
        expected = generate(fresh)
    with attach(pipe, Temperature()):
        generate(pipe)
        pipe.to(torch.bfloat16)
        assert torch.equal(generate(pipe), expected)


# --- adapters ---------------------------------------------------------------------------------


def load_lora(pipe: Any) -> None:
    pipe.load_lora_weights(lora_state(pipe.unet))


def load_picture_adapter(pipe: Any) -> None:
    pipe.load_ip_adapter(ip_adapter_state(pipe.unet), subfolder="", weight_name="")


@pytest.mark.parametrize("name", ADAPTED)
def test_a_lora_loaded_while_attached_equals_one_loaded_before(name: str) -> None:
    pipe = build(name)
    plain, _ = steered(pipe)
    load_lora(pipe)
    before, _ = steered(pipe)
    pipe.unload_lora_weights()
    with attach(pipe, steering()):
        generate(pipe)
        load_lora(pipe)
        during = generate(pipe)
        pipe.unload_lora_weights()
        after = generate(pipe)

    assert torch.equal(before, during)
    assert torch.equal(plain, after)
    assert not torch.equal(plain, before)


@pytest.mark.parametrize("name", ADAPTED)
def test_an_ip_adapter_loaded_before_is_steered_and_restored(name: str) -> None:
    pipe = build(name)
    load_picture_adapter(pipe)
    plain = generate(pipe, ip_adapter_image=picture(3))
    before = fingerprint(pipe)
    keys = list(pipe.unet.state_dict())
    with attach(pipe, steering()) as session:
        ours = generate(pipe, ip_adapter_image=picture(3))
        other = generate(pipe, ip_adapter_image=picture(4))
        assert list(pipe.unet.state_dict()) == keys
        assert session.maps.word("cat").isfinite().all()

    assert not torch.equal(plain, ours)
    assert not torch.equal(ours, other)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(plain, generate(pipe, ip_adapter_image=picture(3)))


@pytest.mark.parametrize("name", ADAPTED)
def test_an_ip_adapter_loaded_while_attached_needs_rebase_and_equals_one_from_before(
    name: str,
) -> None:
    pipe, twin = build(name), build(name)
    load_picture_adapter(twin)
    expected, _ = steered(twin, ip_adapter_image=picture(3))
    session = attach(pipe, steering())
    generate(pipe)
    load_picture_adapter(pipe)
    with pytest.raises(ForeignProcessorError, match=r"load_ip_adapter.*rebase"):
        generate(pipe, ip_adapter_image=picture(3))
    session.rebase()
    during = generate(pipe, ip_adapter_image=picture(3))
    session.detach()

    assert torch.equal(expected, during)
    assert torch.equal(
        generate(pipe, ip_adapter_image=picture(3)), generate(twin, ip_adapter_image=picture(3))
    )
    assert [type(p) for p in pipe.unet.attn_processors.values()] == [
        type(p) for p in twin.unet.attn_processors.values()
    ]


@pytest.mark.parametrize("name", ADAPTED)
def test_the_scale_of_an_ip_adapter_works_while_attached(name: str) -> None:
    pipe = build(name)
    load_picture_adapter(pipe)
    results = []
    for is_before in (True, False):
        pipe.set_ip_adapter_scale(0.3 if is_before else 1.0)
        with attach(pipe, steering()):
            pipe.set_ip_adapter_scale(0.3)
            results.append(generate(pipe, ip_adapter_image=picture(3)))
    pipe.set_ip_adapter_scale(1.0)

    assert torch.equal(*results)
    assert not torch.equal(results[0], steered(pipe, ip_adapter_image=picture(3))[0])


def test_an_ip_adapter_unloaded_while_attached_needs_rebase_and_leaves_the_plain_model() -> None:
    pipe = build("sd1")
    expected, _ = steered(pipe)
    load_picture_adapter(pipe)
    session = attach(pipe, steering())
    generate(pipe, ip_adapter_image=picture(3))
    encoder = pipe.image_encoder, pipe.feature_extractor
    pipe.unload_ip_adapter()
    with pytest.raises(ForeignProcessorError):
        generate(pipe)
    session.rebase()
    after = generate(pipe)
    session.detach()

    assert encoder is not None
    assert torch.equal(expected, after)
    assert not any("ip" in key for key in pipe.unet.state_dict())
