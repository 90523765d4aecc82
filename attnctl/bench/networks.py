"""Pipelines to measure on: random weights, built from their configuration, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from attnctl.shapes.model import build_pipeline, build_unet, build_vae
from attnctl.shapes.text import WIDTH, build_text_encoder, build_tokenizer

STABLE_DIFFUSION_WIDTH = 768
"""Text width of Stable Diffusion 1.5."""


def stable_diffusion_unet() -> UNet2DConditionModel:
    """The denoiser of Stable Diffusion 1.5 at its real size: 860 M parameters, 3.4 GB in fp32."""
    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=STABLE_DIFFUSION_WIDTH, attention_head_dim=8
    )


def medium_unet() -> UNet2DConditionModel:
    """A denoiser of the same plan with a fifth of the widths: 64 x 64 latents, 16 x 16 maps."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # number of heads, whatever its name says
    )


def small_unet() -> UNet2DConditionModel:
    """The denoiser of the bundled ``shapes`` model: 16 x 16 latents."""
    return build_unet()


def pipeline_around(unet: UNet2DConditionModel, seed: int = 0) -> StableDiffusionPipeline:
    """Put a denoiser into a pipeline with the small random text encoder and decoder of shapes."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipe = build_pipeline(build_vae(), unet, build_text_encoder(tokenizer), tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parameters_of(model: Any) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
