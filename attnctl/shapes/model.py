"""The parts of the shapes pipeline: genuine diffusers classes at a small size."""

from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import CLIPTextModel, CLIPTokenizer

from attnctl.shapes.text import WIDTH


def build_vae() -> AutoencoderKL:
    """Build the autoencoder: 64 x 64 x 3 pictures to 16 x 16 x 4 latents, 0.70 M parameters."""
    return cast(Any, AutoencoderKL)(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def build_unet(
    widths: tuple[int, int, int] = (64, 128, 128), heads: int = 4
) -> UNet2DConditionModel:
    """Build the denoiser: 16 x 16 x 4 latents, cross-attention at 16 x 16, 8 x 8 and 4 x 4.

    Args:
        widths: Channels at the three resolutions, multiples of 16.
        heads: Attention heads at every attention layer.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=WIDTH,
        # diffusers reads this setting as the number of heads, whatever its name says.
        attention_head_dim=heads,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Build the scheduler: noise prediction, Stable Diffusion's betas, no clipping of samples."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_pipeline(
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusionPipeline:
    """Put the parts together as an ordinary Stable Diffusion pipeline without a safety checker."""
    pipeline: StableDiffusionPipeline = cast(Any, StableDiffusionPipeline)(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    unet.set_attn_processor(AttnProcessor2_0())  # training on a CPU had another one
    return pipeline


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline as a diffusers folder with float16 safetensors."""
    pipeline.vae.register_to_config(_name_or_path="")  # the folder that it was trained in
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
