"""Tiny transformers that descend from HunyuanVideo."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import (
    CHANNELS,
    HEADS,
    WIDE_HEADS,
    image_batch,
    masked_video,
    text_mask,
    times,
)
from tests.support.denoisers.entry import Draw, TinyDenoiser

HUNYUAN = {
    **CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}


def hunyuan(draw: Draw) -> dict[str, Any]:
    """HunyuanVideo: pooled prompts and a guidance scale."""
    return {**masked_video(draw), "pooled_projections": draw.normal(2, 8), "guidance": times(6.0)}


def framepack(draw: Draw) -> dict[str, Any]:
    """HunyuanVideo FramePack: clean latents and two lengths of history."""
    return {
        **hunyuan(draw),
        "image_embeds": draw.normal(2, 5, 16),
        "indices_latents": torch.arange(2.0),
        "latents_clean": draw.normal(2, 4, 2, 8, 8),
        "indices_latents_clean": torch.arange(2.0),
        "latents_history_2x": draw.normal(2, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.arange(2.0),
        "latents_history_4x": draw.normal(2, 4, 4, 8, 8),
        "indices_latents_history_4x": torch.arange(4.0),
    }


def hunyuan15(draw: Draw) -> dict[str, Any]:
    """HunyuanVideo 1.5: a second prompt for glyphs; zero image features mean text to video."""
    return {
        **masked_video(draw),
        "encoder_hidden_states_2": draw.normal(2, 5, 12),
        "encoder_attention_mask_2": torch.ones(2, 5, dtype=torch.bool),
        "image_embeds": torch.zeros(2, 3, 12),
    }


def motif(draw: Draw) -> dict[str, Any]:
    """Motif-Video: noise, condition and mask share the channel axis."""
    return {**masked_video(draw), "hidden_states": draw.normal(2, 9, 2, 8, 8)}


def hunyuan_image(draw: Draw) -> dict[str, Any]:
    """HunyuanImage: a second prompt for glyphs."""
    return {
        **image_batch(draw),
        "encoder_attention_mask": text_mask(),
        "encoder_hidden_states_2": draw.normal(2, 5, 12),
        "encoder_attention_mask_2": torch.ones(2, 5, dtype=torch.bool),
    }


HUNYUAN_KIN = (
    TinyDenoiser(
        "hunyuan_video",
        "HunyuanVideoTransformer3DModel",
        HUNYUAN,
        hunyuan,
        family="hunyuan_video",
    ),
    TinyDenoiser(
        "framepack",
        "HunyuanVideoFramepackTransformer3DModel",
        {**HUNYUAN, "has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True},
        framepack,
        family="hunyuan_video",
    ),
    TinyDenoiser(
        "hunyuan_video15",
        "HunyuanVideo15Transformer3DModel",
        {
            **HEADS,
            **CHANNELS,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "image_embed_dim": 12,
            "rope_axes_dim": (2, 2, 4),
            "target_size": 16,
            "task_type": "t2v",
        },
        hunyuan15,
        family="hunyuan_video15",
    ),
    TinyDenoiser(
        "motif_video",
        "MotifVideoTransformer3DModel",
        {
            **WIDE_HEADS,
            "in_channels": 9,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "text_embed_dim": 16,
            "rope_axes_dim": (4, 4, 4),
        },
        motif,
        family="motif_video",
    ),
    TinyDenoiser(
        "motif_video_wide",
        "MotifVideoTransformer3DModel",
        {
            **WIDE_HEADS,
            "in_channels": 9,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 3,
            "num_decoder_layers": 1,
            "text_embed_dim": 16,
            "image_embed_dim": 12,
            "rope_axes_dim": (4, 4, 4),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        lambda draw: {**motif(draw), "image_embeds": draw.normal(2, 3, 12)},
        family="motif_video",
    ),
    TinyDenoiser(
        "hunyuan_image",
        "HunyuanImageTransformer2DModel",
        {
            **HEADS,
            **CHANNELS,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "rope_axes_dim": (4, 4),
        },
        hunyuan_image,
    ),
)
