"""Tiny picture transformers with joined streams of text and picture tokens, after Flux or Qwen."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import (
    CHANNELS,
    ROTARY_16,
    TEXT_TOKENS,
    grid_positions,
    packed_batch,
    packed_with_positions,
    text_mask,
    times,
)
from tests.support.denoisers.entry import Draw, TinyDenoiser

DOUBLE_SINGLE = {
    **ROTARY_16,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 2,
    "joint_attention_dim": 16,
}
QWEN = {
    **ROTARY_16,
    "in_channels": 4,
    "out_channels": 1,
    "num_layers": 2,
    "joint_attention_dim": 16,
}


def guided(draw: Draw) -> dict[str, Any]:
    """Packed pictures with a guidance scale."""
    return {**packed_with_positions(draw), "guidance": times(3.5)}


def flux2(draw: Draw) -> dict[str, Any]:
    """Flux 2: positions with four axes, a copy a row."""
    values = packed_with_positions(draw, axes=4)
    ids = {name: values[name].repeat(2, 1, 1) for name in ("img_ids", "txt_ids")}
    return {**values, **ids, "guidance": times(3.5)}


def fibo(draw: Draw) -> dict[str, Any]:
    """Bria Fibo: text features of each layer besides the prompt."""
    layers = [draw.normal(2, TEXT_TOKENS, 8) for _ in range(3)]
    return {**packed_with_positions(draw), "text_encoder_layers": layers}


def fibo2(draw: Draw) -> dict[str, Any]:
    """Bria Fibo 2: one bundle of text features for the gist and one for each injection block."""
    return {
        "hidden_states": draw.normal(2, 4, 8, 8),
        "encoder_hidden_states": draw.normal(2, 2, TEXT_TOKENS, 16),
        "encoder_attention_mask": text_mask(),
        "timestep": times(0.5),
    }


def chroma(draw: Draw) -> dict[str, Any]:
    """Chroma: mask over text and picture tokens."""
    mask = torch.cat([text_mask(), torch.ones(2, 16, dtype=torch.bool)], dim=1)
    return {**packed_with_positions(draw), "attention_mask": mask}


def qwen(draw: Draw) -> dict[str, Any]:
    """Qwen-Image: packed pictures with their shapes; prompts of two lengths."""
    return {
        **packed_batch(draw),
        "encoder_hidden_states_mask": text_mask(torch.long),
        "img_shapes": [(1, 4, 4), (1, 4, 4)],
    }


def qwen21(draw: Draw) -> dict[str, Any]:
    """Qwen-Image 2.1: four slots for a target of 4 by 4 tokens behind the prompt."""
    slots = torch.cat([torch.zeros(2, TEXT_TOKENS), torch.ones(2, 4)], dim=1).bool()
    return {
        **packed_batch(draw),
        "img_shapes": [[(1, 4, 4)], [(1, 4, 4)]],
        "img_mask": slots,
        "encoder_hidden_states_mask": text_mask(),
    }


def krea2(draw: Draw) -> dict[str, Any]:
    """Krea 2: text features of three layers; one list of positions."""
    positions = torch.cat([torch.zeros(TEXT_TOKENS, 3), grid_positions(1, 4, 4)])
    return {
        **packed_batch(draw),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 3, 16),
        "position_ids": positions,
        "encoder_attention_mask": text_mask(),
    }


STREAMS = (
    TinyDenoiser(
        "flux2",
        "Flux2Transformer2DModel",
        {
            **DOUBLE_SINGLE,
            "axes_dims_rope": (4, 4, 4, 4),
            "timestep_guidance_channels": 16,
        },
        flux2,
        family="flux",
    ),
    TinyDenoiser(
        "flux3",
        "Flux3Transformer2DModel",
        {
            **DOUBLE_SINGLE,
            "cond_in_channels": 4,
            "axes_dims_rope": (4, 4, 4, 4),
            "timestep_channels": 16,
        },
        lambda draw: packed_with_positions(draw, axes=4),
        family="flux3",
    ),
    TinyDenoiser(
        "chroma",
        "ChromaTransformer2DModel",
        {
            **DOUBLE_SINGLE,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        chroma,
        family="flux",
    ),
    TinyDenoiser(
        "bria", "BriaTransformer2DModel", DOUBLE_SINGLE, packed_with_positions, family="flux"
    ),
    TinyDenoiser(
        "bria_fibo",
        "BriaFiboTransformer2DModel",
        {**DOUBLE_SINGLE, "text_encoder_dim": 8},
        fibo,
        family="flux",
    ),
    TinyDenoiser(
        "bria_fibo2",
        "BriaFibo2Transformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "cap_feat_dim": 16,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 2,
            "max_num_gist_tokens": 4,
            "gist_step": 1,
            "gist_min_text_len": 2,
            "gist_max_text_len": 8,
            "axes_dims": (8, 4, 4),
            "axes_lens": (32, 16, 16),
        },
        fibo2,
    ),
    TinyDenoiser(
        "ovis_image",
        "OvisImageTransformer2DModel",
        {**DOUBLE_SINGLE, "out_channels": 4},
        packed_with_positions,
        family="flux",
    ),
    TinyDenoiser(
        "longcat_image",
        "LongCatImageTransformer2DModel",
        {**DOUBLE_SINGLE, "pooled_projection_dim": 16},
        guided,
        family="flux",
    ),
    TinyDenoiser("qwen_image", "QwenImageTransformer2DModel", QWEN, qwen, family="qwen"),
    TinyDenoiser(
        "qwen_image21",
        "QwenImage21Transformer2DModel",
        {**ROTARY_16, **CHANNELS, "num_layers": 2, "context_in_dim": 16},
        qwen21,
    ),
    TinyDenoiser(
        "nucleus_image",
        "NucleusMoEImageTransformer2DModel",
        {**QWEN, "num_attention_heads": 4, "num_key_value_heads": 2, "moe_enabled": False},
        qwen,
    ),
    TinyDenoiser(
        "krea2",
        "Krea2Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        krea2,
        family="krea2",
    ),
)
