"""Tiny transformers of the families that attnctl describes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed

from tests.support.denoisers.common import (
    frames_first,
    image_batch,
    packed_with_positions,
    text_mask,
    times,
    video_batch,
)
from tests.support.denoisers.entry import Draw, TinyDenoiser

SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "caption_projection_dim": 16,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 8,
}
FLUX = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
PIXART = {
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "cross_attention_dim": 16,
    "caption_channels": 12,
}
COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 8,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 6,
    "use_rotary_positional_embeddings": True,
}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def sd3(draw: Draw) -> dict[str, Any]:
    """Two noisy pictures, their prompts and pooled prompts."""
    return {**image_batch(draw), "pooled_projections": draw.normal(2, 16)}


def flux(draw: Draw) -> dict[str, Any]:
    """Packed pictures, prompts and pooled prompts."""
    return {**packed_with_positions(draw), "pooled_projections": draw.normal(2, 16)}


def flux_guided(draw: Draw) -> dict[str, Any]:
    """Flux dev: the guidance scale is an input."""
    return {**flux(draw), "guidance": times(3.5)}


def pixart(draw: Draw) -> dict[str, Any]:
    """Two noisy pictures and two prompts, the second one shorter."""
    return {
        **image_batch(draw, text=12),
        "encoder_attention_mask": text_mask(torch.long),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def cogvideox(draw: Draw) -> dict[str, Any]:
    """Two clips of three latent frames, 4 by 4 tokens each, with rotary positions."""
    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), 3, device="cpu")
    return {**frames_first(draw), "image_rotary_emb": rotary}


def wan_image(draw: Draw) -> dict[str, Any]:
    """Image to video: the tokens of a first picture go before exactly 512 tokens of text.

    Wan's processor takes the last 512 keys as the text, whatever their number.
    """
    return {
        **video_batch(draw),
        "encoder_hidden_states": draw.normal(2, 512, 16),
        "encoder_hidden_states_image": draw.normal(2, 5, 20),
    }


FAMILIES = (
    TinyDenoiser("sd3", "SD3Transformer2DModel", SD3, sd3, family="sd3"),
    TinyDenoiser(
        "sd35",
        "SD3Transformer2DModel",
        {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        sd3,
        family="sd3",
    ),
    TinyDenoiser("flux", "FluxTransformer2DModel", FLUX, flux, family="flux"),
    TinyDenoiser(
        "flux_dev",
        "FluxTransformer2DModel",
        {**FLUX, "guidance_embeds": True},
        flux_guided,
        family="flux",
    ),
    TinyDenoiser("pixart", "PixArtTransformer2DModel", PIXART, pixart, family="pixart"),
    TinyDenoiser(
        "cogvideox", "CogVideoXTransformer3DModel", COGVIDEOX, cogvideox, family="cogvideox"
    ),
    TinyDenoiser(
        "cogvideox_learned",
        "CogVideoXTransformer3DModel",
        {**COGVIDEOX, "use_rotary_positional_embeddings": False},
        frames_first,
        family="cogvideox",
    ),
    TinyDenoiser("wan", "WanTransformer3DModel", WAN, video_batch, family="wan"),
    TinyDenoiser(
        "wan_image",
        "WanTransformer3DModel",
        {**WAN, "image_dim": 20, "added_kv_proj_dim": 24, "qk_norm": "rms_norm_across_heads"},
        wan_image,
        family="wan",
    ),
)
