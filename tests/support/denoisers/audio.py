"""Tiny denoisers for sound and other signals with one axis."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import HEADS, TEXT_TOKENS, text_mask, times
from tests.support.denoisers.entry import Draw, TinyDenoiser


def stable_audio(draw: Draw) -> dict[str, Any]:
    """Channels before time; rotary positions for a global token and eight samples."""
    return {
        "hidden_states": draw.normal(2, 4, 8),
        "timestep": times(0.5),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "global_hidden_states": draw.normal(2, 1, 16),
        "rotary_embedding": (draw.normal(9, 4), draw.normal(9, 4)),
    }


def stable_audio3(draw: Draw) -> dict[str, Any]:
    """Channels before time; one global vector."""
    return {
        "hidden_states": draw.normal(2, 4, 8),
        "timestep": times(0.5),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "global_hidden_states": draw.normal(2, 12),
    }


def ace_step(draw: Draw) -> dict[str, Any]:
    """ACE-Step: context latents besides the noisy ones."""
    return {
        "hidden_states": draw.normal(2, 8, 8),
        "timestep": times(0.5),
        "timestep_r": times(0.5),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 32),
        "context_latents": draw.normal(2, 8, 16),
    }


def longcat(draw: Draw) -> dict[str, Any]:
    """LongCat audio: text and sound with masks."""
    return {
        "hidden_states": draw.normal(2, 16, 8),
        "encoder_hidden_states": draw.normal(2, TEXT_TOKENS, 16),
        "encoder_attention_mask": text_mask(),
        "attention_mask": torch.ones(2, 16, dtype=torch.bool),
        "timestep": times(0.5),
    }


def music(draw: Draw) -> dict[str, Any]:
    """MiniMax Music: one condition vector for each sample."""
    return {
        "hidden_states": draw.normal(2, 8, 12),
        "encoder_hidden_states": draw.normal(2, 12, 16),
        "timestep": times(0.5),
    }


AUDIO = (
    TinyDenoiser(
        "stable_audio",
        "StableAudioDiTModel",
        {
            **HEADS,
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": 16,
            "cross_attention_input_dim": 16,
            "global_states_input_dim": 16,
            "time_proj_dim": 8,
        },
        stable_audio,
    ),
    TinyDenoiser(
        "stable_audio3",
        "StableAudio3DiTModel",
        {
            "io_channels": 4,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 4,
            "cond_token_dim": 16,
            "global_cond_dim": 12,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 16,
            "ff_mult": 2.0,
            "num_memory_tokens": 3,
        },
        stable_audio3,
    ),
    TinyDenoiser(
        "ace_step",
        "AceStepTransformer1DModel",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "sliding_window": 2,
        },
        ace_step,
    ),
    TinyDenoiser(
        "longcat_audio",
        "LongCatAudioDiTTransformer",
        {
            "dit_dim": 32,
            "dit_depth": 2,
            "dit_heads": 2,
            "dit_text_dim": 16,
            "latent_dim": 8,
            "text_conv": False,
        },
        longcat,
    ),
    TinyDenoiser(
        "minimax_music",
        "MiniMaxMusic3Transformer1DModel",
        {
            **HEADS,
            "in_channels": 8,
            "condition_dim": 16,
            "num_layers": 2,
            "ff_inner_dim": 32,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        music,
    ),
)
