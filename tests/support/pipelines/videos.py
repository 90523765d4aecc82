"""Tiny video pipelines."""

from __future__ import annotations

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    LattePipeline,
    LatteTransformer3DModel,
    MotionAdapter,
    WanPipeline,
    WanTransformer3DModel,
)

from tests.support.pipelines.adapters import feature_extractor, image_encoder
from tests.support.pipelines.entry import TinyPipeline
from tests.support.pipelines.parts import ddim, decoder, flow
from tests.support.pipelines.text import (
    T5_LENGTH,
    WIDTH,
    clip_text,
    clip_tokenizer,
    t5_text,
    t5_tokenizer,
    umt5_text,
)
from tests.support.pipelines.unets import unet

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def animate_diff() -> AnimateDiffPipeline:
    """Stable Diffusion 1.x with motion modules."""
    tokenizer = clip_tokenizer()
    motion = MotionAdapter(
        block_out_channels=(32, 64),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=8,
        motion_max_seq_length=8,
    )
    for name, weight in motion.named_parameters():
        if name.endswith("proj_out.weight"):
            weight.data.normal_(std=0.1)  # zero by design: untrained, it would do nothing
    return AnimateDiffPipeline(
        unet=unet(),
        motion_adapter=motion,
        vae=decoder(),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=ddim(),
        feature_extractor=feature_extractor(),
        image_encoder=image_encoder(),
    )


def cogvideox() -> CogVideoXPipeline:
    """CogVideoX: joint attention over text and all frames."""
    transformer = CogVideoXTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=T5_LENGTH,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return CogVideoXPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=CogVideoXDDIMScheduler(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )


def wan_transformer() -> WanTransformer3DModel:
    """Two blocks, 16 latent channels as Wan's decoder has them."""
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )


def wan(two_experts: bool = False) -> WanPipeline:
    """Wan: one call a branch; Wan 2.2 has a second transformer for the late steps."""
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return WanPipeline(
        transformer=wan_transformer(),
        transformer_2=wan_transformer() if two_experts else None,
        boundary_ratio=0.8 if two_experts else None,
        vae=vae,
        scheduler=flow(),
        text_encoder=umt5_text(),
        tokenizer=t5_tokenizer(),
    )


def latte() -> LattePipeline:
    """Latte: blocks over space and over time take turns."""
    transformer = LatteTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=16,
        patch_size=2,
        caption_channels=WIDTH,
        cross_attention_dim=32,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        attention_bias=True,
        video_length=2,
    )
    return LattePipeline(
        transformer=transformer,
        vae=decoder(),
        scheduler=ddim(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )


VIDEO_PIPELINES = (
    TinyPipeline("animatediff", animate_diff, family="unet_motion"),
    TinyPipeline("cogvideox", cogvideox, family="cogvideox"),
    TinyPipeline("wan", wan, family="wan", batched=False),
    TinyPipeline("wan22", lambda: wan(two_experts=True), family="wan", batched=False),
    TinyPipeline("latte", latte, family="latte"),
)
