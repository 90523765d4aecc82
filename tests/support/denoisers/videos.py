"""Tiny video transformers that have no attnctl family."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import (
    CHANNELS,
    HEADS,
    TEXT_TOKENS,
    WIDE_HEADS,
    frames_first,
    masked_video,
    text_mask,
    times,
    video_batch,
)
from tests.support.denoisers.entry import Draw, TinyDenoiser
from tests.support.denoisers.families import COGVIDEOX


def ltx(draw: Draw) -> dict[str, Any]:
    """LTX: two frames of 4 by 4 tokens, packed."""
    return {
        "hidden_states": draw.normal(2, 32, 4),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "timestep": times(),
        "encoder_attention_mask": text_mask(),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def ltx2(draw: Draw) -> dict[str, Any]:
    """LTX 2: sound besides pictures."""
    return {
        **ltx(draw),
        "audio_hidden_states": draw.normal(2, 9, 4),
        "audio_encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "audio_num_frames": 9,
        "fps": 25.0,
    }


def cosmos(draw: Draw) -> dict[str, Any]:
    """Cosmos: frame rate as an input; its padding mask needs torchvision and stays off."""
    return {**video_batch(draw), "fps": 24}


def consisid(draw: Draw) -> dict[str, Any]:
    """ConsisID: features of a face."""
    return {
        **frames_first(draw),
        "id_cond": draw.normal(2, 4),
        "id_vit_hidden": [draw.normal(2, 3, 4) for _ in range(5)],
    }


def kandinsky5(draw: Draw) -> dict[str, Any]:
    """Kandinsky 5: channels last, positions as an input."""
    return {
        "hidden_states": draw.normal(2, 2, 8, 8, 4),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "timestep": times(),
        "pooled_projections": draw.normal(2, 8),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def kandinsky6(draw: Draw) -> dict[str, Any]:
    """Kandinsky 6: sound besides pictures."""
    return {
        "hidden_states": draw.normal(2, 2, 8, 8, 4),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "timestep": times(),
        "pooled_projections": draw.normal(2, 8),
        "audio_hidden_states": draw.normal(2, 5, 4),
        "encoder_attention_mask": text_mask(),
    }


def single_stream(draw: Draw) -> dict[str, Any]:
    """Transformer over time inside a U-Net: three frames for each row."""
    return {"hidden_states": draw.normal(6, 16, 4, 4), "num_frames": 3}


VIDEOS = (
    TinyDenoiser(
        "temporal",
        "TransformerTemporalModel",
        {**HEADS, "in_channels": 16, "norm_num_groups": 4},
        single_stream,
    ),
    TinyDenoiser(
        "latte",
        "LatteTransformer3DModel",
        {
            **HEADS,
            **CHANNELS,
            "num_layers": 2,
            "sample_size": 8,
            "patch_size": 2,
            "caption_channels": 16,
            "cross_attention_dim": 16,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "activation_fn": "gelu-approximate",
            "video_length": 2,
        },
        video_batch,
        family="latte",
    ),
    TinyDenoiser(
        "allegro",
        "AllegroTransformer3DModel",
        {
            **HEADS,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 2,
            "caption_channels": 16,
        },
        video_batch,
        family="allegro",
    ),
    TinyDenoiser(
        "ltx",
        "LTXVideoTransformer3DModel",
        {**HEADS, **CHANNELS, "num_layers": 2, "cross_attention_dim": 16, "caption_channels": 16},
        ltx,
        family="ltx",
    ),
    TinyDenoiser(
        "ltx2",
        "LTX2VideoTransformer3DModel",
        {
            **HEADS,
            **CHANNELS,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 8,
            "caption_channels": 16,
            "rope_double_precision": False,
        },
        ltx2,
        family="ltx2",
    ),
    TinyDenoiser(
        "mochi",
        "MochiTransformer3DModel",
        {
            **HEADS,
            "num_layers": 2,
            "in_channels": 4,
            "pooled_projection_dim": 16,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": TEXT_TOKENS,
        },
        masked_video,
        family="mochi",
    ),
    TinyDenoiser(
        "cosmos",
        "CosmosTransformer3DModel",
        {
            **WIDE_HEADS,
            **CHANNELS,
            "num_layers": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 16, 16),
            "concat_padding_mask": False,
        },
        cosmos,
        family="cosmos",
    ),
    TinyDenoiser(
        "easyanimate",
        "EasyAnimateTransformer3DModel",
        {
            **CHANNELS,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": 2,
            "mmdit_layers": 2,
            "patch_size": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
        video_batch,
    ),
    TinyDenoiser(
        "consisid",
        "ConsisIDTransformer3DModel",
        {
            **{key: COGVIDEOX[key] for key in COGVIDEOX if not key.startswith("use_")},
            "is_train_face": True,
            "cross_attn_interval": 1,
            "cross_attn_dim_head": 4,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 4,
            "LFE_vit_dim": 4,
            "LFE_depth": 5,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 1,
            "LFE_num_querie": 2,
            "LFE_output_dim": 21,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 5,
        },
        consisid,
        family="cogvideox",
    ),
    TinyDenoiser(
        "sana_video",
        "SanaVideoTransformer3DModel",
        {
            **WIDE_HEADS,
            **CHANNELS,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 8,
            "rope_max_seq_len": 32,
        },
        masked_video,
    ),
    TinyDenoiser(
        "kandinsky5",
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "out_visual_dim": 4,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 8),
        },
        kandinsky5,
        family="kandinsky5",
    ),
    TinyDenoiser(
        "kandinsky6",
        "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "out_visual_dim": 4,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 8),
            "visual_cond": False,
            "in_audio_dim": 4,
            "out_audio_dim": 4,
        },
        kandinsky6,
    ),
)
