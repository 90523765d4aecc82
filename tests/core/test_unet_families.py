"""ModelScope, I2VGen-XL, Stable Video Diffusion and Kandinsky 3 against their tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DDPMPipeline,
    EulerDiscreteScheduler,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    VQModel,
)
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from attnctl import APG, PAG, HeatMaps, attach
from attnctl.calls import AttentionCall
from attnctl.errors import AttnctlError
from tests.core.samples import Identity, Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw, wake_silent_parameters
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines.adapters import feature_extractor
from tests.support.pipelines.calls import PROMPT
from tests.support.pipelines.parts import ddim, decoder, picture, seeded
from tests.support.pipelines.text import WIDTH, clip_text, clip_tokenizer, t5_text, t5_tokenizer

NAMES = ["unet_3d", "i2vgen_xl", "stable_video"]
FRAMES, HEIGHT, WIDTH_CELLS = 3, 6, 10


def inputs_of(name: str) -> dict[str, Any]:
    """The usual inputs with latents that are no square."""
    inputs, draw = DENOISERS[name].inputs(), Draw(3)
    for key in {"sample", "image_latents"} & set(inputs):
        inputs[key] = draw.normal(*inputs[key].shape[:-2], HEIGHT, WIDTH_CELLS)
    return inputs


def calls_of(name: str, inputs: dict[str, Any]) -> list[AttentionCall]:
    watch, model = Watch(needs_layout=True), DENOISERS[name].build()
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    return watch.seen


@pytest.mark.parametrize("name", NAMES)
def test_grids_and_folds_are_those_of_the_tokens(name: str) -> None:
    for call in calls_of(name, inputs_of(name)):
        layout = call.layout
        assert layout is not None
        frames, height, width = layout.grid
        assert (frames, layout.is_video) == (FRAMES, True)
        assert (height, width) == (-(-HEIGHT // 2**call.site.level), WIDTH_CELLS >> call.site.level)
        if layout.fold == "positions":
            assert (call.query.shape[2], call.fold) == (frames, height * width)
        else:
            assert (call.query.shape[2], call.fold) == (height * width, frames)


@pytest.mark.parametrize("name", NAMES)
def test_kinds_say_what_attends_to_what(name: str) -> None:
    for call in calls_of(name, inputs_of(name)):
        assert call.layout is not None
        queries, keys = call.query.shape[2], call.key.shape[2]
        if call.site.kind == "cross":
            assert keys not in (queries, FRAMES)
            continue
        assert keys == queries
        assert (call.site.kind == "temporal") == (call.layout.fold == "positions")


@pytest.mark.parametrize("name", ["unet_3d", "i2vgen_xl"])
def test_text_lies_where_the_layout_says(name: str) -> None:
    inputs = inputs_of(name)
    changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
    for call, other in zip(calls_of(name, inputs), calls_of(name, changed), strict=True):
        if call.site.kind == "cross":
            assert call.layout is not None
            assert call.layout.text is not None
            difference = (call.key - other.key).abs().sum(dim=(0, 1, 3)).nonzero().flatten()
            assert difference.tolist() == list(range(call.layout.text.start, call.layout.text.stop))


# --- the real pipeline of Stable Video Diffusion ----------------------------------------------


def eye() -> CLIPVisionModelWithProjection:
    """CLIP for pictures of 224 pixels, which the pipeline makes of any."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
    )
    return CLIPVisionModelWithProjection(config).eval()


def stable_video() -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion at toy size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNetSpatioTemporalConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            num_attention_heads=(2, 4),
            num_frames=3,
        )
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), latent_channels=4
        )
        pipe = StableVideoDiffusionPipeline(
            vae=vae.eval(),
            image_encoder=eye(),
            unet=unet.eval(),
            scheduler=EulerDiscreteScheduler(prediction_type="v_prediction"),
            feature_extractor=feature_extractor(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def film(pipe: StableVideoDiffusionPipeline, scale: float = 3.0) -> Tensor:
    """Latents of a clip, ``(1, frames, channels, height, width)``; the scale rises from 1."""
    return pipe(
        picture(),
        height=16,
        width=24,
        num_frames=FRAMES,
        num_inference_steps=3,
        max_guidance_scale=scale,
        output_type="latent",
        generator=seeded(0),
    ).frames


def test_an_idle_session_changes_no_bit_and_leaves_no_trace() -> None:
    pipe = stable_video()
    before, plain = fingerprint(pipe.unet), film(pipe)
    with attach(pipe, Identity()):
        assert torch.equal(film(pipe), plain)
    assert differences(before, fingerprint(pipe.unet)) == []


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_branches_are_those_of_the_pipeline(scale: float) -> None:
    pipe, watch = stable_video(), Watch(needs_layout=True)
    with attach(pipe, watch):
        film(pipe, scale)
    rows = (("uncond", 0), ("cond", 0)) if scale > 1 else (("cond", 0),)
    assert watch.rows_by_step == {step: {rows} for step in range(3)}
    layout = watch.seen[0].layout
    assert layout is not None
    assert layout.grid == (FRAMES, *pipe.unet.conv_in(torch.zeros(1, 8, 16, 24)).shape[-2:])


@pytest.mark.parametrize("where", ["mid:self", "mid:temporal"])
def test_perturbed_guidance_moves_every_frame(where: str) -> None:
    pipe = stable_video()
    plain = film(pipe)
    with attach(pipe, PAG(scale=2.0, where=where)):
        guided = film(pipe)
    assert (guided - plain).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-4
    assert torch.equal(film(pipe), plain)


def test_there_are_no_words() -> None:
    pipe = stable_video()
    with pytest.raises(AttnctlError), attach(pipe, HeatMaps(["cat"])):
        film(pipe)


# --- the real pipeline of ModelScope ----------------------------------------------------------


def text_to_video() -> TextToVideoSDPipeline:
    """ModelScope's text to video at toy size; it folds frames into the batch of the scheduler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        unet = UNet3DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        )
        pipe = TextToVideoSDPipeline(
            vae=decoder().eval(),
            text_encoder=clip_text(tokenizer),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=ddim(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words_to_film(pipe: TextToVideoSDPipeline, scale: float = 4.0, **changes: Any) -> Tensor:
    """Latents of a clip of a cat and a frog."""
    pipe.vae.decode = lambda latents: SimpleNamespace(sample=latents)  # more channels than RGB
    pipe.video_processor.postprocess_video = lambda video, output_type: video
    call = {"height": 16, "width": 24, "num_frames": FRAMES, "num_inference_steps": 3, **changes}
    return pipe(PROMPT, guidance_scale=scale, generator=seeded(0), **call).frames


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_clips_from_words_have_their_branches(scale: float) -> None:
    pipe, watch = text_to_video(), Watch(needs_layout=True)
    plain = words_to_film(pipe, scale)
    with attach(pipe, watch):
        assert torch.equal(words_to_film(pipe, scale), plain)
    rows = (("uncond", 0), ("cond", 0)) if scale > 1 else (("cond", 0),)
    assert watch.rows_by_step == {step: {rows} for step in range(3)}


def test_words_are_found_and_guidance_reaches_the_clip() -> None:
    pipe = text_to_video()
    plain = words_to_film(pipe)
    with attach(pipe, [HeatMaps(["cat"]), PAG(scale=2.0, where="mid:self")]) as session:
        guided = words_to_film(pipe)
        heat = session.maps.word("cat", frame=1)
    assert (guided - plain).abs().max() > 1e-4
    assert heat.shape == (8, 12)


# --- the real pipeline of Kandinsky 3 ---------------------------------------------------------


def kandinsky_3() -> Kandinsky3Pipeline:
    """Kandinsky 3 at toy size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = Kandinsky3UNet(
            time_embedding_dim=32,
            groups=4,
            attention_head_dim=8,
            layers_per_block=2,
            block_out_channels=(16, 32, 32, 32),
            cross_attention_dim=WIDTH,
            encoder_hid_dim=WIDTH,
        )
        wake_silent_parameters(unet, 1.0)
        pipe = Kandinsky3Pipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=t5_text(),
            unet=unet.eval(),
            scheduler=DDIMScheduler(clip_sample=False),
            movq=VQModel(block_out_channels=(16,), latent_channels=4, norm_num_groups=4).eval(),
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Kandinsky3Pipeline, scale: float = 3.0) -> Tensor:
    """Latents of a picture of a cat and a frog."""
    call = {"height": 128, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
    return pipe(PROMPT, guidance_scale=scale, generator=seeded(0), **call)[0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_kandinsky_3_has_its_branches(scale: float) -> None:
    pipe, watch = kandinsky_3(), Watch(needs_layout=True)
    before, plain = fingerprint(pipe.unet), paint(pipe, scale)
    with attach(pipe, watch):
        assert torch.equal(paint(pipe, scale), plain)
    assert differences(before, fingerprint(pipe.unet)) == []
    rows = (("uncond", 0), ("cond", 0)) if scale > 1 else (("cond", 0),)
    assert watch.rows_by_step == {step: {rows} for step in range(3)}
    assert {call.site.kind for call in watch.seen} == {"self", "cross"}


def test_kandinsky_3_finds_words_and_adds_guidance() -> None:
    pipe = kandinsky_3()
    plain = paint(pipe)
    with attach(pipe, [HeatMaps(["cat"]), PAG(scale=2.0, where="down:self")]) as session:
        guided = paint(pipe)
        heat = session.maps.word("cat")
    assert (guided - plain).abs().max() > 1e-4
    assert heat.shape == (8, 4)


# --- no prompt, no guidance -------------------------------------------------------------------


def test_a_model_without_a_prompt_is_guided_by_a_perturbed_copy() -> None:
    unet = DENOISERS["unet_unconditional"].build()
    pipe = DDPMPipeline(unet, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 3, "output_type": "np", "batch_size": 2}

    def draw() -> Tensor:
        return torch.as_tensor(pipe(generator=seeded(0), **call).images)

    plain, watch = draw(), Watch(needs_layout=True)
    with attach(pipe, [watch, PAG(scale=2.0, where="mid:self")]):
        guided = draw()
    main = [row for row in watch.seen[0].rows if row.kind == "main"]
    assert [(row.branch, row.item) for row in main] == [("cond", 0), ("cond", 1)]
    assert (guided - plain).abs().max() > 1e-4
    assert torch.equal(draw(), plain)


def test_kandinsky_3_counts_its_scale_from_the_conditional_prediction() -> None:
    pipe = kandinsky_3()
    plain = paint(pipe, 2.0)
    with attach(pipe, APG(eta=1.0, norm_threshold=0.0)):  # the pipeline's own formula, written anew
        again = paint(pipe, 2.0)
    assert (again - plain).abs().max() < 1e-4 * plain.abs().max()
