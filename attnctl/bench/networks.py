"""Pipelines to measure on: random weights, built from their configuration, nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from attnctl.shapes.model import build_pipeline, build_unet, build_vae
from attnctl.shapes.text import WIDTH, build_text_encoder, build_tokenizer

STABLE_DIFFUSION_WIDTH = 768
"""Text width of Stable Diffusion 1.5."""


def stable_diffusion_unet() -> UNet2DConditionModel:
    """The denoiser of Stable Diffusion 1.5 at its real size: 860 M parameters, 3.4 GB in fp32."""
    return UNet2DConditionModel(
        sample_size=64, cross_attention_dim=STABLE_DIFFUSION_WIDTH, attention_head_dim=8
    )


def finest_unet() -> UNet2DConditionModel:
    """The finest resolution of Stable Diffusion 1.5 alone, three layers of its real widths."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=STABLE_DIFFUSION_WIDTH,
        attention_head_dim=8,  # number of heads, whatever its name says
    )


def medium_unet() -> UNet2DConditionModel:
    """A denoiser of the same plan with a fifth of the widths: 64 x 64 latents, 16 x 16 maps."""
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # number of heads, whatever its name says
    )


def tiny_unet() -> UNet2DConditionModel:
    """A denoiser of half a million parameters: 32 x 32 latents, 32 x 32 to 8 x 8 maps."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,  # number of heads, whatever its name says
        norm_num_groups=8,
    )


def small_unet() -> UNet2DConditionModel:
    """The denoiser of the bundled ``shapes`` model: 16 x 16 latents."""
    return build_unet()


def stable_diffusion_3() -> SD3Transformer2DModel:
    """The denoiser of Stable Diffusion 3 medium at its real size: 2 B parameters, in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # in fp32 first, it would take 8 GB
    try:
        model = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        )
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def small_sd3() -> SD3Transformer2DModel:
    """A denoiser of the same plan at toy size, in fp32."""
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    ).eval()


def pipeline_around_sd3(transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """Put a denoiser into a pipeline without text encoders and decoder: embeddings to latents."""
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts: dict[str, Any] = dict.fromkeys((*names, "text_encoder_3", "tokenizer_3"))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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


def random_inputs(
    pipe: Any, *, side: int, steps: int, guidance: float, tokens: int = 77, seed: int = 7
) -> dict[str, Any]:
    """Arguments of a call that needs no text encoder: random embeddings, latents to start from.

    Args:
        pipe: Pipeline around one of these networks.
        side: Side of the latents in cells.
        steps: Denoising steps.
        guidance: Weight of classifier-free guidance.
        tokens: Text tokens.
        seed: Of everything random.
    """
    draw = torch.Generator().manual_seed(seed)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    config = denoiser.config

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw).to(denoiser.device, denoiser.dtype)

    side_px = side * pipe.vae_scale_factor
    arguments = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "height": side_px,
        "width": side_px,
        "latents": noise(1, config.in_channels, side, side),
        "output_type": "latent",
    }
    width = config.get("cross_attention_dim") or config.joint_attention_dim
    for prefix in ("", "negative_"):
        arguments[f"{prefix}prompt_embeds"] = noise(1, tokens, width)
        if "pooled_projection_dim" in config:
            pooled = noise(1, config.pooled_projection_dim)
            arguments[f"{prefix}pooled_prompt_embeds"] = pooled
    return arguments
