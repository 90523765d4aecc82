"""NAG against loops of our own, and its invariants on every family that it declares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor

import attnctl
from attnctl import NAG
from attnctl.errors import SettingError, UnsupportedModelError
from tests.core.claims import SAMPLES
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate, ip_adapter_state, lora_state, picture
from tests.techniques.nag_reference import CrossProcessor, Guide, flux_nag, guide, sd3_nag

NEGATIVE = "a red dog"
CROSS = ("sd1", "sdxl", "pixart_sigma", "animatediff", "wan", "wan22")
JOINT = ("flux", "flux_dev", "sd3", "sd35", "cogvideox")
DEFAULTS = guide(4.0, 2.5, 0.25, 2)
ROUNDING = 2e-5  # of the size of the latents: rows that share a forward round differently


def steered(pipe: Any, *techniques: Any, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, techniques or [NAG(NEGATIVE)]):
        return generate(pipe, **changes)


def assert_close(ours: Tensor, theirs: Tensor, plain: Tensor) -> None:
    """Equal up to rounding, where the effect is far above it."""
    size = float(theirs.abs().max())
    assert float((theirs - plain).abs().max()) > 100 * ROUNDING * size
    assert float((ours - theirs).abs().max()) < ROUNDING * size


# --- against our own loops ---------------------------------------------------------------------


@torch.no_grad()
def encoded(pipe: Any, text: str, **settings: Any) -> tuple[Any, ...]:
    """What the pipeline makes of one prompt."""
    guided = {"do_classifier_free_guidance": False}
    if "Flux" in type(pipe).__name__:
        guided = {}
    if hasattr(pipe, "tokenizer_3"):
        settings |= {"prompt_3": None}
    if hasattr(pipe, "tokenizer_2"):
        settings |= {"prompt_2": None}
    count = "num_videos_per_prompt" if "Wan" in type(pipe).__name__ else "num_images_per_prompt"
    return pipe.encode_prompt(text, device=pipe.device, **{count: 1}, **guided, **settings)


def site_text(pipe: Any) -> tuple[Tensor, Tensor | None]:
    """The negative prompt as cross-attention sites see it, and its bias ``(1, 1, 1, tokens)``."""
    name = type(pipe).__name__
    if name.startswith("PixArt"):
        text, mask = encoded(pipe, NEGATIVE, max_sequence_length=16, clean_caption=False)[:2]
        bias = (1 - mask.float())[:, None, None] * -10000.0
        return pipe.transformer.caption_projection(text), bias
    if name.startswith("Wan"):
        text = encoded(pipe, NEGATIVE, max_sequence_length=16)[0]
        return pipe.transformer.condition_embedder.text_embedder(text), None
    return encoded(pipe, NEGATIVE)[0], None


def with_own_processors(pipe: Any, rows: slice, blend: Guide, where: str = "", **changes: Any):
    """The latents of a pipeline whose cross-attention is computed by our own processor."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    with torch.no_grad():
        text, bias = site_text(pipe)
    kept = {}
    for path, module in model.named_modules():
        if path.endswith("attn2") and where in path:
            kept[module] = module.processor
            module.processor = CrossProcessor(text, bias, rows, blend)
    try:
        return generate(pipe, **changes)
    finally:
        for module, processor in kept.items():
            module.processor = processor


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma"])
@pytest.mark.parametrize(("scale", "rows"), [(5.0, slice(1, None)), (1.0, slice(None))])
def test_cross_attention_equals_processors_of_our_own(name: str, scale: float, rows: slice) -> None:
    pipe = build(name)
    plain = generate(pipe, guidance_scale=scale)
    ours = steered(pipe, guidance_scale=scale)
    theirs = with_own_processors(pipe, rows, DEFAULTS, guidance_scale=scale)
    assert_close(ours, theirs, plain)


def test_wan_equals_processors_of_our_own_without_guidance() -> None:
    pipe = build("wan")
    plain = generate(pipe, guidance_scale=1.0)
    ours = steered(pipe, guidance_scale=1.0)
    assert_close(ours, with_own_processors(pipe, slice(None), DEFAULTS, guidance_scale=1.0), plain)


@pytest.mark.parametrize(
    ("settings", "blend"),
    [
        ({"scale": 2.0, "alpha": 0.5, "norm": "l1"}, guide(2.0, 2.5, 0.5, 1)),
        ({"scale": 30.0, "tau": 1.25, "alpha": 1.0}, guide(30.0, 1.25, 1.0, 2)),
    ],
)
def test_every_setting_reaches_the_sites(settings: dict[str, Any], blend: Guide) -> None:
    pipe = build("sd1")
    ours = steered(pipe, NAG(NEGATIVE, **settings))
    theirs = with_own_processors(pipe, slice(1, None), blend)
    assert_close(ours, theirs, generate(pipe))


def test_only_selected_sites_are_guided() -> None:
    pipe = build("sd1")
    ours = steered(pipe, NAG(NEGATIVE, where="mid:cross"))
    theirs = with_own_processors(pipe, slice(1, None), DEFAULTS, where="mid_block")
    assert_close(ours, theirs, generate(pipe))


def flux_inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    """Two items of 4 by 4 image tokens and 6 text tokens."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    ids = torch.zeros(16, 3)
    ids[:, 1:] = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    return {
        "hidden_states": torch.randn(2, 16, config.in_channels, generator=generator),
        "encoder_hidden_states": torch.randn(2, 6, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([0.6, 0.6]),
        "guidance": torch.tensor([3.5, 3.5]) if config.guidance_embeds else None,
        "img_ids": ids,
        "txt_ids": torch.zeros(6, 3),
    }


def sd3_inputs(model: Any, seed: int = 0) -> dict[str, Any]:
    """Two items of 8 by 8 latents and 6 text tokens."""
    generator, config = torch.Generator().manual_seed(seed), model.config
    return {
        "hidden_states": torch.randn(2, config.in_channels, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(2, 6, config.joint_attention_dim, generator=generator),
        "pooled_projections": torch.randn(2, config.pooled_projection_dim, generator=generator),
        "timestep": torch.tensor([600.0, 600.0]),
    }


@pytest.mark.parametrize("name", ["flux", "flux_dev", "sd3", "sd35"])
@torch.no_grad()
def test_joint_attention_equals_a_loop_with_two_text_streams(name: str) -> None:
    model = build(name).transformer
    make, loop = (flux_inputs, flux_nag) if name.startswith("flux") else (sd3_inputs, sd3_nag)
    inputs = make(model)
    negative = {k: v[:1] for k, v in make(model, seed=1).items() if k in TEXT_ARGUMENTS}
    seen: list[Tensor] = []
    hook = model.proj_out.register_forward_hook(lambda *call: seen.append(call[-1][:2].clone()))
    model(**inputs)
    with attnctl.attach(model, [NAG(negative_embeds=negative)]):
        model(**inputs)
    hook.remove()
    plain, ours = seen
    assert_close(ours, loop(model, inputs, negative, DEFAULTS), plain)


TEXT_ARGUMENTS = ("encoder_hidden_states", "pooled_projections")


# --- invariants --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CROSS, *JOINT])
def test_the_prompt_as_its_own_negative_changes_nothing(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    same, other = steered(pipe, NAG(PROMPT)), steered(pipe, NAG(NEGATIVE))
    assert_close(same, plain, other)


@pytest.mark.parametrize("name", ["sd1", "wan", "flux", "sd3"])
@pytest.mark.parametrize(
    "technique",
    [
        NAG(NEGATIVE, scale=0),
        NAG(NEGATIVE, alpha=0),
        NAG(NEGATIVE, steps=attnctl.between(0.0, 0.0)),
        NAG(NEGATIVE, steps=attnctl.after(7)),
    ],
    ids=["scale 0", "alpha 0", "empty window", "window behind the run"],
)
def test_off_is_identical_and_costs_nothing(name: str, technique: NAG) -> None:
    pipe = build(name)
    plain, usual = counted(pipe)
    with attnctl.attach(pipe, [technique]):
        off, calls = counted(pipe)
    assert torch.equal(off, plain)
    assert calls == usual


def counted(pipe: Any) -> tuple[Tensor, dict[str, int]]:
    """Latents of a run, and the rows that went into each model."""
    model = getattr(pipe, "unet", None) or pipe.transformer
    parts = {"text": pipe.text_encoder, "entry": next(model.children()), "end": model_end(model)}
    rows = dict.fromkeys(parts, 0)

    def counter(name: str) -> Any:
        def count(module: Any, args: Any, output: Any) -> None:
            rows[name] += 1 if name == "text" else len(output)

        return count

    hooks = [part.register_forward_hook(counter(name)) for name, part in parts.items()]
    latents = generate(pipe)
    for hook in hooks:
        hook.remove()
    return latents, rows


def model_end(model: Any) -> Any:
    """The last layer of a denoiser."""
    return model.conv_out if hasattr(model, "conv_out") else model.proj_out


def test_cross_attention_costs_one_encoding_and_the_start_of_one_forward_a_run() -> None:
    pipe = build("sd1")
    _, usual = counted(pipe)
    with attnctl.attach(pipe, [NAG(NEGATIVE)]):
        _, calls = counted(pipe)
    assert calls == {"text": usual["text"] + 1, "entry": usual["entry"] + 1, "end": usual["end"]}


def test_joint_attention_costs_one_row_for_each_item() -> None:
    pipe = build("flux")
    _, usual = counted(pipe)
    with attnctl.attach(pipe, [NAG(NEGATIVE)]):
        _, calls = counted(pipe)
    assert calls["text"] == usual["text"] + 1
    assert calls["end"] == 2 * usual["end"]


@pytest.mark.parametrize("name", ["sd1", "pixart_sigma", "sd3", "cogvideox"])
def test_with_guidance_only_conditional_rows_change(name: str) -> None:
    pipe = build(name)
    model = getattr(pipe, "unet", None) or pipe.transformer
    seen: list[Tensor] = []
    end = model_end(model)
    hook = end.register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    generate(pipe, steps=1)
    steered(pipe, steps=1)
    hook.remove()
    plain, guided = seen
    assert len(plain) == 2
    assert torch.allclose(guided[0], plain[0], atol=1e-5)
    assert not torch.allclose(guided[1], plain[1], atol=1e-4)


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_steps_outside_the_window_are_bit_identical(name: str) -> None:
    pipe = build(name)
    plain, late = trajectory(pipe), []
    with attnctl.attach(pipe, [NAG(NEGATIVE, steps=attnctl.after(2))]) as session:
        late = trajectory(pipe)
        assert session.report().active_steps("nag") == (2, 3)
    same = [torch.equal(a, b) for a, b in zip(plain, late, strict=True)]
    assert same == [True, True, False, False]


def trajectory(pipe: Any) -> list[Tensor]:
    """Latents after each of four steps."""
    kept: list[Tensor] = []

    def keep(_: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept.append(values["latents"].clone())
        return values

    generate(pipe, steps=4, callback_on_step_end=keep)
    return kept


def test_a_ramp_scales_the_difference() -> None:
    pipe = build("sd1")
    half = steered(pipe, NAG(NEGATIVE, scale=4.0, steps=attnctl.ramp(0.5, 0.5)))
    assert torch.allclose(half, steered(pipe, NAG(NEGATIVE, scale=2.0)), atol=1e-6)


def test_heads_that_are_not_selected_stay_as_they_are() -> None:
    pipe = build("sd1")
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0]
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].clone()))
    generate(pipe, steps=1)
    steered(pipe, NAG(NEGATIVE, where="mid:cross,heads=0"), steps=1)
    hook.remove()
    plain, guided = seen
    width = plain.shape[-1] // 2
    assert not torch.equal(guided[1, ..., :width], plain[1, ..., :width])
    assert torch.equal(guided[..., width:], plain[..., width:])


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


# --- leaving, and mistakes ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_sigma", "wan", "flux", "sd3"])
def test_it_leaves_no_trace(name: str) -> None:
    pipe = build(name)
    plain, before = generate(pipe), fingerprint(pipe)
    steered(pipe)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("name", ["sd1", "flux"])
@pytest.mark.parametrize("place", ["text encoder", "first forward", "second step"])
def test_an_exception_restores_everything(name: str, place: str) -> None:
    pipe = build(name)
    model = getattr(pipe, "unet", None) or pipe.transformer
    plain, before = generate(pipe), fingerprint(pipe)
    calls = {"text": 0, "end": 0}

    def fail_at(kind: str, call: int) -> Any:
        def fail(*_: Any) -> None:
            calls[kind] += 1
            if calls[kind] == call:
                raise RuntimeError("out of memory, say")

        return fail

    with attnctl.attach(pipe, [NAG(NEGATIVE)]):
        usual = 2 if name == "sd1" else 1
        part, kind, number = {
            "text encoder": (pipe.text_encoder, "text", usual + 1),
            "first forward": (model_end(model), "end", 1),
            "second step": (model_end(model), "end", 2),
        }[place]
        hook = part.register_forward_pre_hook(fail_at(kind, number))
        with pytest.raises(RuntimeError, match="out of memory"):
            generate(pipe)
        hook.remove()
        again = generate(pipe)
    assert torch.equal(again, steered(pipe))
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


def test_offloading_layer_by_layer_changes_nothing() -> None:
    for name in ("sd1", "flux"):
        expected = steered(build(name))
        pipe = build(name)
        model = getattr(pipe, "unet", None) or pipe.transformer
        cpu_offload(model, torch.device("cpu"), offload_buffers=True)
        assert torch.equal(steered(pipe), expected)


def test_settings_are_plain_values_that_build_it_again() -> None:
    technique = NAG("blurry", scale=2.0, norm="l1", steps="0-50%")
    assert NAG.from_settings(technique.settings()) == technique
    embeds = {"encoder_hidden_states": torch.zeros(1, 2, 3)}
    assert NAG(negative_embeds=embeds).settings()["negative_embeds"] == {
        "encoder_hidden_states": "(1, 2, 3)"
    }


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -1.0}, "scale=-1.0"),
        ({"scale": float("nan")}, "finite"),
        ({"tau": 0.5}, "from 1"),
        ({"alpha": 1.5}, "from 0 to 1"),
        ({"norm": "l3"}, "l2"),
        ({"negative_prompt": ["a", "b"]}, "one text"),
        ({"negative_embeds": {}}, "text arguments"),
        ({"negative_embeds": {"encoder_hidden_states": "(1, 2, 3)"}}, "text arguments"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        NAG(**settings)


@pytest.mark.parametrize(("name", "where"), [("sd1", "mid"), ("sd35", "layers=0")])
def test_attention_without_text_is_refused_before_the_first_step(name: str, where: str) -> None:
    with pytest.raises(UnsupportedModelError, match="attend to text"):
        steered(build(name), NAG(NEGATIVE, where=where))


def test_a_model_of_no_known_family_is_refused_at_attach() -> None:
    with pytest.raises(UnsupportedModelError, match="supported: "):
        attnctl.attach(build("latte"), [NAG(NEGATIVE)])


@pytest.mark.parametrize(
    ("name", "embeds", "text"),
    [
        ("flux", {"encoder_hidden_states": (1, 9, 32), "pooled_projections": (1, 32)}, "tokens"),
        ("sd1", {"encoder_hidden_states": (1, 9, 31)}, "shape"),
        ("sd1", {"encoder_hidden_states": (2, 9, 32)}, "one row"),
        ("sd1", {"text": (1, 9, 32)}, "lack encoder_hidden_states"),
        ("sd1", {"encoder_hidden_states": (1, 9, 32), "text": (1, 9)}, "is not given 'text'"),
        ("pixart_sigma", {"encoder_hidden_states": (1, 9, 32)}, "encoder_attention_mask"),
        ("sd3", {"encoder_hidden_states": (1, 9, 32)}, "pooled_projections"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused_before_the_first_forward(
    name: str, embeds: dict[str, tuple[int, ...]], text: str
) -> None:
    given = {key: torch.zeros(shape) for key, shape in embeds.items()}
    pipe = build(name)
    ends: list[Any] = []
    model = getattr(pipe, "unet", None) or pipe.transformer
    hook = model_end(model).register_forward_hook(lambda *call: ends.append(call))
    with pytest.raises(SettingError, match=text):
        steered(pipe, NAG(negative_embeds=given))
    hook.remove()
    assert ends == []


def test_a_pipeline_without_text_encoders_is_refused() -> None:
    pipe = build("sd1")
    embeds = encoded(pipe, PROMPT)[0]
    pipe.text_encoder = None
    with (
        attnctl.attach(pipe, [NAG(NEGATIVE)]),
        pytest.raises(UnsupportedModelError, match="negative_embeds"),
    ):
        pipe(prompt_embeds=embeds, negative_prompt_embeds=embeds, num_inference_steps=1)


def test_processors_alone_cannot_hold_it() -> None:
    with pytest.raises(UnsupportedModelError, match="nag"):
        attnctl.attn_processors(build("sd1").unet, NAG(NEGATIVE))
