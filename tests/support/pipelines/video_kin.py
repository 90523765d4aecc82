"""Tiny pipelines of the kin of Wan, HunyuanVideo and LTX-Video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMapEulerDiscreteScheduler,
    HeliosPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.support.denoisers.entry import wake_silent_parameters
from tests.support.pipelines.adapters import feature_extractor
from tests.support.pipelines.entry import TinyPipeline
from tests.support.pipelines.language import (
    byt5_text,
    byt5_tokenizer,
    gemma3_text,
    gemma_tokenizer,
    llama_text,
    llama_tokenizer,
    qwen_text,
    qwen_tokenizer,
    t5_gemma2_text,
)
from tests.support.pipelines.parts import flow
from tests.support.pipelines.text import WIDTH, clip_text, clip_tokenizer, t5_tokenizer, umt5_text

WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": WIDTH,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def wan_decoder() -> AutoencoderKLWan:
    """Latents of an eighth of the side, and of a fourth of the frames."""
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def wan_parts(transformer: torch.nn.Module) -> dict[str, Any]:
    """Everything that Wan's pipelines share."""
    wake_silent_parameters(transformer, gain=1.0)
    return {
        "transformer": transformer,
        "vae": wan_decoder(),
        "scheduler": flow(),
        "text_encoder": umt5_text(),
        "tokenizer": t5_tokenizer(),
    }


def uni_pc() -> UniPCMultistepScheduler:
    """Rectified flow, with the corrections of UniPC."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def wan_vace() -> WanVACEPipeline:
    """Wan VACE: a control clip, read by blocks of its own."""
    transformer = WanVACETransformer3DModel(**WAN, vace_layers=[0, 1], vace_in_channels=96)
    return WanVACEPipeline(**wan_parts(transformer))


def skyreels() -> SkyReelsV2Pipeline:
    """SkyReels V2: Wan under another name."""
    return SkyReelsV2Pipeline(**wan_parts(SkyReelsV2Transformer3DModel(**WAN)))


def skyreels_forcing() -> SkyReelsV2DiffusionForcingPipeline:
    """SkyReels V2 with diffusion forcing: each frame has a time and a scheduler of its own."""
    parts = wan_parts(SkyReelsV2Transformer3DModel(**WAN, inject_sample_info=True))
    return SkyReelsV2DiffusionForcingPipeline(**{**parts, "scheduler": uni_pc()})


def hunyuan15_parts(task: str) -> dict[str, Any]:
    """Everything that both pipelines of HunyuanVideo 1.5 take."""
    tokenizer, glyphs = qwen_tokenizer(), byt5_tokenizer()
    transformer = HunyuanVideo15Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=9,
        out_channels=4,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type=task,
    )
    wake_silent_parameters(transformer, gain=1.0)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": flow(),
        "text_encoder": qwen_text(tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": byt5_text(glyphs),
        "tokenizer_2": glyphs,
        "guider": ClassifierFreeGuidance(guidance_scale=4.0),
    }


def with_short_texts(pipe: Any) -> Any:
    """Shorten what HunyuanVideo 1.5 encodes; the tiny tokenizer needs another cut."""
    pipe.system_message = "a red dog"
    ids = pipe.tokenizer(f"<|im_start|>system\n{pipe.system_message}<|im_end|>\n<|im_start|>user\n")
    pipe.prompt_template_encode_start_idx = len(ids.input_ids)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 24, 12
    pipe.vision_num_semantic_tokens = 4
    return pipe


def hunyuan15() -> HunyuanVideo15Pipeline:
    """HunyuanVideo 1.5: Qwen's tokens behind those of glyphs; guidance by an object."""
    return with_short_texts(HunyuanVideo15Pipeline(**hunyuan15_parts("t2v")))


def hunyuan15_image() -> HunyuanVideo15ImageToVideoPipeline:
    """The same with a picture, whose tokens come before all others of the text."""
    eye = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    pipe = HunyuanVideo15ImageToVideoPipeline(
        **hunyuan15_parts("i2v"),
        image_encoder=SiglipVisionModel(eye).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )
    return with_short_texts(pipe)


def ltx2() -> LTX2Pipeline:
    """LTX-2: video and sound; Gemma's tokens, moved to the front among registers."""
    tokenizer = gemma_tokenizer()
    transformer = LTX2VideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        caption_channels=WIDTH,
        rope_double_precision=False,
        perturbed_attn=True,
    )
    wake_silent_parameters(transformer, gain=1.0)
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        down_block_types=("LTX2VideoDownBlock3D",),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(True,),
        upsample_factor=(2,),
        patch_size=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )
    sound = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1,),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )
    return LTX2Pipeline(
        transformer=transformer,
        vae=vae,
        audio_vae=sound,
        vocoder=vocoder,
        connectors=connectors,
        scheduler=flow(),
        text_encoder=gemma3_text(tokenizer),
        tokenizer=tokenizer,
    )


def picture_parts() -> dict[str, Any]:
    """CLIP's features of a picture, as Wan's pipelines take them."""
    eye = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return {"image_encoder": CLIPVisionModel(eye).eval(), "image_processor": feature_extractor()}


def chronoedit() -> ChronoEditPipeline:
    """ChronoEdit: a picture and what becomes of it."""
    transformer = ChronoEditTransformer3DModel(
        **{**WAN, "in_channels": 36}, image_dim=WIDTH, added_kv_proj_dim=24
    )
    parts = {**wan_parts(transformer), "scheduler": uni_pc()}
    return ChronoEditPipeline(**parts, **picture_parts())


def wan_animate() -> WanAnimatePipeline:
    """Wan Animate: pose and face of a character, in parts of a few frames."""
    transformer = WanAnimateTransformer3DModel(
        **{**WAN, "in_channels": 36},
        latent_channels=16,
        image_dim=WIDTH,
        added_kv_proj_dim=24,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return WanAnimatePipeline(**wan_parts(transformer), **picture_parts())


def anyflow() -> AnyFlowPipeline:
    """AnyFlow: frames before channels, both branches in one batch."""
    parts = wan_parts(AnyFlowTransformer3DModel(**WAN))
    return AnyFlowPipeline(**{**parts, "scheduler": FlowMapEulerDiscreteScheduler()})


def helios() -> HeliosPipeline:
    """Helios: chunks of frames, with history in front."""
    settings = {key: WAN[key] for key in WAN if key != "rope_max_seq_len"}
    parts = wan_parts(HeliosTransformer3DModel(**settings, rope_dim=(4, 4, 4)))
    scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], scheduler_type="euler")
    return HeliosPipeline(**{**parts, "scheduler": scheduler})


HUNYUAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "rope_axes_dim": (2, 4, 4),
}


def hunyuan_parts(transformer: torch.nn.Module) -> dict[str, Any]:
    """Everything that the pipelines of HunyuanVideo share."""
    wake_silent_parameters(transformer, gain=1.0)
    words, pooled = llama_tokenizer(), clip_tokenizer()
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": flow(),
        "text_encoder": llama_text(words),
        "tokenizer": words,
        "text_encoder_2": clip_text(pooled),
        "tokenizer_2": pooled,
    }


def llama_template() -> dict[str, Any]:
    """A template of HunyuanVideo's kind, short enough for the tiny tokenizer."""
    start = "<|start_header_id|>system<|end_header_id|>\n\na red cat:<|eot_id|>"
    start += "<|start_header_id|>user<|end_header_id|>\n\n"
    crop = len(llama_tokenizer()(start).input_ids)
    return {"template": f"{start}{{}}<|eot_id|>", "crop_start": crop}


def hunyuan_video() -> HunyuanVideoPipeline:
    """HunyuanVideo: Llama's tokens behind a template, a pooled CLIP vector."""
    return HunyuanVideoPipeline(**hunyuan_parts(HunyuanVideoTransformer3DModel(**HUNYUAN)))


def framepack() -> HunyuanVideoFramepackPipeline:
    """FramePack: sections of frames, with history in front."""
    eye = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    transformer = HunyuanVideoFramepackTransformer3DModel(
        **HUNYUAN, has_image_proj=True, image_proj_dim=WIDTH, has_clean_x_embedder=True
    )
    return HunyuanVideoFramepackPipeline(
        **hunyuan_parts(transformer),
        image_encoder=SiglipVisionModel(eye).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 32, "width": 32}),
    )


def motif_video() -> MotifVideoPipeline:
    """Motif-Video: guidance by an object; padding in front of the prompt."""
    tokenizer = gemma_tokenizer()
    transformer = MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=33,
        out_channels=16,
        num_layers=1,
        num_single_layers=3,
        num_decoder_layers=1,
        text_embed_dim=WIDTH,
        rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True,
    )
    return MotifVideoPipeline(
        **{
            **wan_parts(transformer),
            "text_encoder": t5_gemma2_text(tokenizer),
            "tokenizer": tokenizer,
        },
        guider=ClassifierFreeGuidance(4.0),
    )


VIDEO_KIN: dict[str, TinyPipeline] = {
    entry.name: entry
    for entry in (
        TinyPipeline("wan_vace", wan_vace, family="wan", batched=False),
        TinyPipeline("skyreels", skyreels, family="wan", batched=False),
        TinyPipeline("skyreels_forcing", skyreels_forcing, family="wan", batched=False),
        TinyPipeline("hunyuan15", hunyuan15, family="hunyuan_video15", batched=False),
        TinyPipeline("hunyuan15_image", hunyuan15_image, family="hunyuan_video15", batched=False),
        TinyPipeline("ltx2", ltx2, family="ltx2"),
        TinyPipeline("chronoedit", chronoedit, family="wan", batched=False),
        TinyPipeline("wan_animate", wan_animate, family="wan", batched=False),
        TinyPipeline("anyflow", anyflow, family="anyflow"),
        TinyPipeline("helios", helios, family="helios", batched=False),
        TinyPipeline("hunyuan_video", hunyuan_video, family="hunyuan_video", batched=False),
        TinyPipeline("framepack", framepack, family="hunyuan_video", batched=False),
        TinyPipeline("motif_video", motif_video, family="motif_video", batched=False),
    )
}


def build_kin(name: str, seed: int = 0) -> DiffusionPipeline:
    """Make the pipeline of that name; equal seeds give equal twins."""
    return VIDEO_KIN[name].build(seed)
