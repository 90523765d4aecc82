"""Tiny denoisers with an unusual way of calling attention: packed, causal, sparse or grouped."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

from tests.support.denoisers.common import TEXT_TOKENS, image_batch, text_mask, times
from tests.support.denoisers.entry import Draw, TinyDenoiser
from tests.support.denoisers.unets import SD1, picture

JOY = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}


def gated(draw: Draw) -> dict[str, Any]:
    """GLIGEN: two boxes with their phrases, read by extra attention layers."""
    boxes = {
        "boxes": draw.uniform(2, 2, 4),
        "masks": torch.ones(2, 2),
        "positive_embeddings": draw.normal(2, 2, 16),
    }
    return {**picture(draw), "cross_attention_kwargs": {"gligen": boxes}}


def joy(draw: Draw) -> dict[str, Any]:
    """JoyImage: one frame."""
    return {**image_batch(draw), "hidden_states": draw.normal(2, 4, 1, 8, 8)}


def joy_plus(draw: Draw) -> dict[str, Any]:
    """JoyImage Edit Plus: a target and a reference of 2 by 2 patches each, packed."""
    return {
        **image_batch(draw),
        "hidden_states": draw.normal(2, 8, 4, 1, 2, 2),
        "shape_list": [[(1, 2, 2), (1, 2, 2)]] * 2,
    }


def packed_film(draw: Draw) -> dict[str, Any]:
    """MiniMax H3: text, sound and video tokens in one sequence with tags and positions."""
    words, sounds, pixels = 4, 3, 8
    tags = torch.tensor([1] * words + [2] * sounds + [0] * pixels)
    places = torch.arange(words + sounds + pixels)
    return {
        "hidden_states": draw.normal(2, pixels, 16),
        "audio_hidden_states": draw.normal(2, sounds, 6),
        "encoder_hidden_states": draw.normal(2, words, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": places.float().repeat(3, 1).T,
        "video_indices": places[tags == 0],
        "audio_indices": places[tags == 2],
        "text_indices": places[tags == 1],
    }


def understood(draw: Draw) -> dict[str, Any]:
    """Cosmos 3: two prompt tokens, then four picture tokens; no batch axis."""
    pixels = torch.arange(2, 6)
    return {
        "input_ids": torch.tensor([1, 2]),
        "text_indexes": torch.tensor([0, 1]),
        "position_ids": torch.arange(6).repeat(3, 1),
        "und_len": 2,
        "sequence_length": 6,
        "vision_tokens": [draw.normal(1, 2, 1, 2, 2)],
        "vision_token_shapes": [(1, 2, 2)],
        "vision_sequence_indexes": pixels,
        "vision_mse_loss_indexes": pixels,
        "vision_timesteps": torch.ones(4),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def reference_pass(draw: Draw) -> dict[str, Any]:
    """Wan Animate 2: the pass over the reference, which fills a cache of keys and values."""
    return {
        "hidden_states": [draw.normal(4, 2, 4, 4)],
        "condition_latents": [draw.normal(8, 2, 4, 4)],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [draw.normal(TEXT_TOKENS, 16)],
        "encoder_hidden_states_image": draw.normal(1, 4, 1280),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


def camera(draw: Draw) -> dict[str, Any]:
    """SANA-WM without a camera path."""
    return {
        "hidden_states": draw.normal(2, 4, 2, 4, 4),
        "timestep": torch.full((2, 1, 2), 500.0),
        "encoder_hidden_states": draw.normal(2, 1, TEXT_TOKENS, 16),
        "encoder_attention_mask": text_mask(),
    }


RARE = (
    TinyDenoiser(
        "sd1_gligen",
        "UNet2DConditionModel",
        {**SD1, "attention_type": "gated"},
        gated,
        family="unet",
    ),
    TinyDenoiser(
        "dreamlite",
        "DreamLiteUNetModel",
        {
            **SD1,
            "down_block_types": (
                "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
                "DreamLiteCrossAttnDownBlock2D",
            ),
            "up_block_types": (
                "DreamLiteCrossAttnUpBlock2D",
                "DreamLiteCrossAttnNoSelfAttnUpBlock2D",
            ),
        },
        picture,
    ),
    TinyDenoiser("joy_image", "JoyImageEditTransformer3DModel", JOY, joy),
    TinyDenoiser("joy_image_plus", "JoyImageEditPlusTransformer3DModel", JOY, joy_plus),
    TinyDenoiser(
        "minimax_film",
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        packed_film,
    ),
    TinyDenoiser(
        "cosmos3",
        "Cosmos3OmniTransformer",
        {
            "head_dim": 6,
            "hidden_size": 12,
            "intermediate_size": 24,
            "latent_channel": 2,
            "latent_patch_size": 1,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "patch_latent_dim": 2,
            "rope_axes_dim": [1, 1, 1],
            "vocab_size": 32,
        },
        understood,
        rows=1,
    ),
    TinyDenoiser(
        "wan_animate2",
        "WanAnimate2Transformer3DModel",
        {
            "text_len": TEXT_TOKENS,
            "in_dim": 12,
            "dim": 64,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": 16,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 2,
        },
        reference_pass,
        rows=1,
    ),
    TinyDenoiser(
        "sana_wm",
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "softmax_every_n": 2,
            "linear_head_dim": 16,
            "caption_channels": 16,
            "chunk_plucker_channels": 6,
        },
        camera,
    ),
    TinyDenoiser(
        "kandinsky6_sr",
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 16,
            "model_dim": 32,
            "ff_dim": 32,
            "num_visual_blocks": 2,
            "axes_dims": (4, 6, 6),
        },
        lambda draw: {"hidden_states": draw.normal(2, 2, 8, 8, 9), "timestep": times()},
    ),
    TinyDenoiser(
        "minimax_codes",
        "MiniMaxMusic3RVQDepthDecoder",
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "audio_vocab_size": 16,
            "num_codebooks": 4,
        },
        lambda draw: {"inputs_embeds": draw.normal(2, 4, 16)},
    ),
)
