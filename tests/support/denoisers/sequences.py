"""Tiny picture transformers that see text and picture as one sequence."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import (
    CHANNELS,
    HEADS,
    TEXT_TOKENS,
    grid_positions,
    image_batch,
    times,
)
from tests.support.denoisers.entry import Draw, TinyDenoiser


def omnigen(draw: Draw) -> dict[str, Any]:
    """OmniGen: prompt token ids, time and picture in one sequence."""
    length = TEXT_TOKENS + 1 + 16
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": times(0.5),
        "input_ids": draw.integers(32, 2, TEXT_TOKENS),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(2, length, length),
        "position_ids": torch.arange(length).repeat(2, 1),
    }


def hidream(draw: Draw) -> dict[str, Any]:
    """HiDream: T5 and Llama features, Llama ones layer by layer."""
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timesteps": times(),
        "encoder_hidden_states_t5": draw.normal(2, TEXT_TOKENS, 8),
        "encoder_hidden_states_llama3": draw.normal(2, 2, TEXT_TOKENS, 4),
        "pooled_embeds": draw.normal(2, 8),
    }


def z_image(draw: Draw) -> dict[str, Any]:
    """Z-Image: lists instead of a batch."""
    return {
        "x": [draw.normal(4, 1, 8, 8), draw.normal(4, 1, 8, 8)],
        "cap_feats": [draw.normal(TEXT_TOKENS, 16), draw.normal(4, 16)],
        "t": times(0.5),
    }


def ideogram(draw: Draw) -> dict[str, Any]:
    """Ideogram 4: one sequence; an indicator tells text (3) from picture (2)."""
    words, pixels = TEXT_TOKENS, 16
    positions = torch.cat([torch.arange(words).repeat(3, 1).T, grid_positions(1, 4, 4) + 65536])
    indicator = torch.tensor([3] * words + [2] * pixels)
    return {
        "hidden_states": draw.normal(2, words + pixels, 4),
        "encoder_hidden_states": draw.normal(2, words + pixels, 16),
        "timestep": times(0.5),
        "position_ids": positions.long().repeat(2, 1, 1),
        "segment_ids": torch.ones(2, words + pixels, dtype=torch.long),
        "indicator": indicator.repeat(2, 1),
    }


def ernie(draw: Draw) -> dict[str, Any]:
    """ERNIE-Image: prompts with their lengths."""
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": times(),
        "text_bth": draw.normal(2, TEXT_TOKENS, 16),
        "text_lens": torch.tensor([TEXT_TOKENS, 4]),
    }


SEQUENCES = (
    TinyDenoiser(
        "auraflow",
        "AuraFlowTransformer2DModel",
        {
            **HEADS,
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        image_batch,
        family="aura_flow",
        gain=3.0,
    ),
    TinyDenoiser(
        "omnigen",
        "OmniGenTransformer2DModel",
        {
            "in_channels": 4,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 32,
            "time_step_dim": 4,
            "pos_embed_max_size": 8,
            "rope_scaling": {"long_factor": [1, 2], "short_factor": [1, 2]},
        },
        omnigen,
    ),
    TinyDenoiser(
        "hidream",
        "HiDreamImageTransformer2DModel",
        {
            **HEADS,
            **CHANNELS,
            "patch_size": 2,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [8, 4],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        hidream,
        family="hidream",
    ),
    TinyDenoiser(
        "z_image",
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [8, 4, 4],
            "axes_lens": [128, 32, 32],
        },
        z_image,
        family="z_image",
    ),
    TinyDenoiser(
        "ideogram4",
        "Ideogram4Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 2,
            "intermediate_size": 32,
            "adaln_dim": 16,
            "llm_features_dim": 16,
            "mrope_section": (2, 1, 1),
        },
        ideogram,
    ),
    TinyDenoiser(
        "ernie_image",
        "ErnieImageTransformer2DModel",
        {
            **CHANNELS,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 32,
            "text_in_dim": 16,
            "rope_axes_dim": (8, 4, 4),
        },
        ernie,
    ),
)
