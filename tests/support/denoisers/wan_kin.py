"""Tiny video transformers that descend from Wan."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.denoisers.common import CHANNELS, WIDE_HEADS, frames_first, times, video_batch
from tests.support.denoisers.entry import Draw, TinyDenoiser
from tests.support.denoisers.families import WAN, wan_image


def vace(draw: Draw) -> dict[str, Any]:
    """Wan VACE: a control clip."""
    return {**video_batch(draw), "control_hidden_states": draw.normal(2, 12, 2, 8, 8)}


def animate(draw: Draw) -> dict[str, Any]:
    """Wan Animate: pose and face of a character; 1 + 4 latent frames, 13 face pictures."""
    return {
        "hidden_states": draw.normal(2, 12, 5, 8, 8),
        "timestep": times(),
        "encoder_hidden_states": draw.normal(2, 512, 16),
        "encoder_hidden_states_image": draw.normal(2, 5, 16),
        "pose_hidden_states": draw.normal(2, 4, 4, 8, 8),
        "face_pixel_values": draw.normal(2, 3, 13, 16, 16),
    }


def helios(draw: Draw) -> dict[str, Any]:
    """Helios: three lengths of history."""
    frames = {"short": 1, "mid": 2, "long": 4}
    history = {f"latents_history_{name}": draw.normal(2, 4, n, 8, 8) for name, n in frames.items()}
    places = {
        f"indices_latents_history_{name}": torch.arange(float(n)).repeat(2, 1)
        for name, n in frames.items()
    }
    here = {"indices_hidden_states": torch.arange(2.0).repeat(2, 1)}
    return {**video_batch(draw), **here, **places, **history}


def anyflow(draw: Draw) -> dict[str, Any]:
    """AnyFlow: two times for each frame, from one to the other."""
    return {
        **frames_first(draw, text=16),
        "timestep": torch.full((2, 3), 500.0),
        "r_timestep": torch.full((2, 3), 250.0),
    }


WAN_KIN = (
    TinyDenoiser(
        "wan_vace",
        "WanVACETransformer3DModel",
        {**WAN, "vace_layers": [0, 1], "vace_in_channels": 12},
        vace,
        family="wan",
    ),
    TinyDenoiser(
        "wan_animate",
        "WanAnimateTransformer3DModel",
        {
            **WAN,
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 16,
            "added_kv_proj_dim": 24,
            "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        animate,
        family="wan",
    ),
    TinyDenoiser("skyreels", "SkyReelsV2Transformer3DModel", WAN, video_batch, family="wan"),
    TinyDenoiser(
        "skyreels_image",
        "SkyReelsV2Transformer3DModel",
        {**WAN, "image_dim": 20, "added_kv_proj_dim": 24},
        wan_image,
        family="wan",
    ),
    TinyDenoiser("chronoedit", "ChronoEditTransformer3DModel", WAN, video_batch, family="wan"),
    TinyDenoiser(
        "helios",
        "HeliosTransformer3DModel",
        {
            **WIDE_HEADS,
            **CHANNELS,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_dim": (4, 4, 4),
        },
        helios,
        family="helios",
    ),
    TinyDenoiser("anyflow", "AnyFlowTransformer3DModel", WAN, anyflow, family="anyflow"),
    TinyDenoiser(
        "anyflow_far",
        "AnyFlowFARTransformer3DModel",
        WAN,
        lambda draw: {**anyflow(draw), "chunk_partition": [1, 2]},
    ),
)
