"""Tiny picture transformers: text by cross-attention, joined, or none."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from tests.support.denoisers.common import (
    CHANNELS,
    HEADS,
    TEXT_TOKENS,
    image_batch,
    text_mask,
    times,
)
from tests.support.denoisers.entry import Draw, TinyDenoiser

COGVIEW = {
    **HEADS,
    **CHANNELS,
    "num_layers": 2,
    "text_embed_dim": 16,
    "time_embed_dim": 8,
    "condition_dim": 4,
    "sample_size": 8,
}
LUMINA = {
    "sample_size": 8,
    "in_channels": 4,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "multiple_of": 16,
}


def classes(draw: Draw) -> dict[str, Any]:
    """Two noisy pictures and their class labels."""
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "timestep": torch.tensor([5, 5]),
        "class_labels": draw.integers(4, 2),
    }


def hunyuan_dit(draw: Draw) -> dict[str, Any]:
    """Prompts from two text encoders, with masks."""
    return {
        **image_batch(draw),
        "encoder_hidden_states_t5": draw.normal(2, 5, 16),
        "text_embedding_mask": text_mask(),
        "text_embedding_mask_t5": torch.ones(2, 5, dtype=torch.bool),
        "image_meta_size": draw.uniform(2, 6) * 64,
        "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": (draw.normal(16, 8), draw.normal(16, 8)),
    }


def lumina(draw: Draw) -> dict[str, Any]:
    """Lumina-Next: rotary positions are an input."""
    return {
        **image_batch(draw),
        "timestep": times(0.5),
        "encoder_mask": text_mask(),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 8, 8),
        "cross_attention_kwargs": {},
    }


def lumina2(draw: Draw) -> dict[str, Any]:
    """Lumina 2: one sequence of text and picture."""
    return {**image_batch(draw), "timestep": times(0.5), "encoder_attention_mask": text_mask()}


def masked(draw: Draw) -> dict[str, Any]:
    """Pictures and prompts of two lengths."""
    return {**image_batch(draw), "encoder_attention_mask": text_mask()}


def sized(draw: Draw) -> dict[str, Any]:
    """CogView: pictures, prompts, sizes and crop."""
    size = torch.tensor([[64.0, 64.0], [64.0, 64.0]])
    return {
        **image_batch(draw),
        "original_size": size,
        "target_size": size.clone(),
        "crop_coords": torch.zeros(2, 2),
    }


def glm(draw: Draw) -> dict[str, Any]:
    """GLM-Image: one code-book token for each picture token."""
    return {
        **image_batch(draw),
        "prior_token_id": draw.integers(32, 2, 16),
        "prior_token_drop": torch.zeros(2, dtype=torch.bool),
        "target_size": torch.full((2, 2), 64.0),
        "crop_coords": torch.zeros(2, 2),
    }


def prior(draw: Draw) -> dict[str, Any]:
    """unCLIP prior: an image embedding as the noisy sample."""
    return {
        "hidden_states": draw.normal(2, 8),
        "timestep": 5,
        "proj_embedding": draw.normal(2, 8),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 8),
    }


def latent_cross(draw: Draw) -> dict[str, Any]:
    """The transformer inside a U-Net, alone."""
    return {
        "hidden_states": draw.normal(2, 16, 4, 4),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
    }


IMAGES = (
    TinyDenoiser(
        "dit",
        "DiTTransformer2DModel",
        {**HEADS, **CHANNELS, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 8},
        classes,
        family="dit",
    ),
    TinyDenoiser(
        "transformer_2d",
        "Transformer2DModel",
        {**HEADS, "in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 16},
        latent_cross,
    ),
    TinyDenoiser(
        "hunyuan_dit",
        "HunyuanDiT2DModel",
        {
            **HEADS,
            "sample_size": 8,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 16,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": TEXT_TOKENS,
            "text_len_t5": 5,
        },
        hunyuan_dit,
        family="hunyuan_dit",
    ),
    TinyDenoiser(
        "lumina",
        "LuminaNextDiT2DModel",
        {**LUMINA, "cross_attention_dim": 16, "learn_sigma": False},
        lumina,
    ),
    TinyDenoiser(
        "lumina2",
        "Lumina2Transformer2DModel",
        {
            **LUMINA,
            "num_refiner_layers": 1,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 32, 32),
            "cap_feat_dim": 16,
        },
        lumina2,
        family="lumina2",
    ),
    TinyDenoiser(
        "sana",
        "SanaTransformer2DModel",
        {
            **HEADS,
            **CHANNELS,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 16,
            "sample_size": 8,
        },
        masked,
        family="pixart",
    ),
    TinyDenoiser(
        "cogview3",
        "CogView3PlusTransformer2DModel",
        {**COGVIEW, "pos_embed_max_size": 8},
        sized,
        family="cogview",
    ),
    TinyDenoiser("cogview4", "CogView4Transformer2DModel", COGVIEW, sized, family="cogview"),
    TinyDenoiser(
        "glm_image",
        "GlmImageTransformer2DModel",
        {
            **HEADS,
            **CHANNELS,
            "num_layers": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "prior_vq_quantizer_codebook_size": 32,
        },
        glm,
    ),
    TinyDenoiser(
        "prior",
        "PriorTransformer",
        {**HEADS, "num_layers": 2, "embedding_dim": 8, "num_embeddings": TEXT_TOKENS},
        prior,
    ),
    TinyDenoiser(
        "prx",
        "PRXTransformer2DModel",
        {
            "in_channels": 4,
            "context_in_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [8, 8],
        },
        image_batch,
    ),
)
