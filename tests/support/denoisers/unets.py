"""Tiny U-Nets for pictures and videos."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import text_mask
from tests.support.denoisers.entry import Draw, TinyDenoiser

CROSS_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SD1 = {
    **CROSS_BLOCKS,
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,  # the number of heads, by an old mistake of diffusers
}
SD2 = {**SD1, "use_linear_projection": True, "attention_head_dim": (2, 4)}
SDXL = {
    **SD2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}
MOTION = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 8,
}
UNET_3D = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}


def picture(draw: Draw, channels: int = 4, text: int = 16) -> dict[str, Any]:
    """Two noisy pictures and two prompts."""
    return {
        "sample": draw.normal(2, channels, 8, 8),
        "timestep": 5,
        "encoder_hidden_states": draw.normal(2, 6, text),
    }


def picture_with_sizes(draw: Draw) -> dict[str, Any]:
    """SDXL: the same, with pooled text and picture sizes."""
    added = {"text_embeds": draw.normal(2, 16), "time_ids": draw.uniform(2, 6) * 64}
    return {**picture(draw), "added_cond_kwargs": added}


def clip(draw: Draw) -> dict[str, Any]:
    """Two noisy clips of three frames and two prompts."""
    return {
        "sample": draw.normal(2, 4, 3, 8, 8),
        "timestep": 5,
        "encoder_hidden_states": draw.normal(2, 6, 16),
    }


def clip_with_text_a_frame(draw: Draw) -> dict[str, Any]:
    """AnimateDiff: the pipeline repeats each prompt for every frame."""
    values = clip(draw)
    text = values["encoder_hidden_states"].repeat_interleave(3, dim=0)
    return {**values, "encoder_hidden_states": text}


def masked_picture(draw: Draw) -> dict[str, Any]:
    """Kandinsky 3 cannot do without a text mask."""
    return {**picture(draw), "encoder_attention_mask": text_mask()}


def stable_video(draw: Draw) -> dict[str, Any]:
    """Stable Video Diffusion: frames before channels, one image token as text."""
    return {
        "sample": draw.normal(2, 3, 8, 8, 8),
        "timestep": 5,
        "encoder_hidden_states": draw.normal(2, 1, 16),
        "added_time_ids": draw.uniform(2, 3) * 8,
    }


def image_to_video(draw: Draw) -> dict[str, Any]:
    """I2VGen-XL: a first picture and its embedding besides the prompt."""
    return {
        **clip(draw),
        "fps": torch.tensor([8, 8]),
        "image_latents": draw.normal(2, 4, 3, 8, 8),
        "image_embeddings": draw.normal(2, 16),
    }


def cascade(draw: Draw) -> dict[str, Any]:
    """Stable Cascade, prior stage."""
    return {
        "sample": draw.normal(2, 4, 8, 8),
        "timestep_ratio": draw.uniform(2),
        "clip_text_pooled": draw.normal(2, 1, 16),
        "clip_text": draw.normal(2, 6, 16),
        "clip_img": draw.normal(2, 1, 12),
    }


def image_tokens(draw: Draw) -> dict[str, Any]:
    """aMUSEd: a picture as code-book indices."""
    return {
        "input_ids": draw.integers(16, 2, 8, 8),
        "encoder_hidden_states": draw.normal(2, 6, 16),
        "pooled_text_emb": draw.normal(2, 16),
        "micro_conds": draw.uniform(2, 5) * 64,
    }


UNETS = (
    TinyDenoiser("sd1", "UNet2DConditionModel", SD1, picture, family="unet"),
    TinyDenoiser("sd2", "UNet2DConditionModel", SD2, picture, family="unet"),
    TinyDenoiser("sdxl", "UNet2DConditionModel", SDXL, picture_with_sizes, family="unet"),
    TinyDenoiser(
        "sd1_upcast",
        "UNet2DConditionModel",
        {**SD1, "upcast_attention": True, "only_cross_attention": (True, False)},
        picture,
        family="unet",
    ),
    TinyDenoiser(
        "animatediff", "UNetMotionModel", MOTION, clip_with_text_a_frame, family="unet_motion"
    ),
    TinyDenoiser(
        "unet_unconditional",
        "UNet2DModel",
        {
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 8,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        lambda draw: {"sample": draw.normal(2, 3, 8, 8), "timestep": 5},
        family="unet",
    ),
    TinyDenoiser(
        "unet_added_kv",
        "UNet2DConditionModel",
        {
            **SD1,
            "down_block_types": ("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "attention_head_dim": 8,
        },
        picture,
        family="unet",
    ),
    TinyDenoiser("unet_3d", "UNet3DConditionModel", UNET_3D, clip, family="unet_3d"),
    TinyDenoiser("i2vgen_xl", "I2VGenXLUNet", UNET_3D, image_to_video, family="unet_3d"),
    TinyDenoiser(
        "stable_video",
        "UNetSpatioTemporalConditionModel",
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "layers_per_block": 1,
            "cross_attention_dim": 16,
            "num_attention_heads": (2, 4),
            "num_frames": 3,
        },
        stable_video,
        family="unet_3d",
    ),
    TinyDenoiser(
        "kandinsky3",
        "Kandinsky3UNet",
        {
            "time_embedding_dim": 32,
            "groups": 4,
            "attention_head_dim": 8,
            "layers_per_block": 2,  # a single layer never reaches the width of its level
            "block_out_channels": (16, 32, 32, 32),
            "cross_attention_dim": 16,
            "encoder_hid_dim": 16,
        },
        masked_picture,
        family="kandinsky3",
    ),
    TinyDenoiser(
        "stable_cascade",
        "StableCascadeUNet",
        {
            "in_channels": 4,
            "out_channels": 4,
            "timestep_ratio_embedding_dim": 16,
            "conditioning_dim": 32,
            "block_out_channels": (16, 32),
            "num_attention_heads": (2, 4),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "clip_text_in_channels": 16,
            "clip_text_pooled_in_channels": 16,
            "clip_image_in_channels": 12,
            "clip_seq": 2,
            "switch_level": (False,),
        },
        cascade,
    ),
    TinyDenoiser(
        "uvit",
        "UVit2DModel",
        {
            "hidden_size": 16,
            "cond_embed_dim": 16,
            "micro_cond_encode_dim": 4,
            "micro_cond_embed_dim": 20,
            "encoder_hidden_size": 16,
            "vocab_size": 17,
            "codebook_size": 16,
            "in_channels": 16,
            "block_out_channels": 16,
            "num_res_blocks": 1,
            "block_num_heads": 2,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "sample_size": 8,
        },
        image_tokens,
    ),
)
