"""The parts of the ``shapes-mmdit`` pipeline: Stable Diffusion 3's classes at a small size."""

from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from attnctl.shapes.text import WIDTH, build_projected_text_encoder

LAYERS, HEADS, HEAD_WIDTH = 8, 5, 32
TEXT_TOKENS = 32  # of each CLIP encoder; the longest caption of the world has 20


def build_transformer() -> SD3Transformer2DModel:
    """Build the denoiser: 16 x 16 x 4 latents in patches of 2, query-key norms, 7.4 M parameters.

    Both modulations and the last projection start at zero, so that each block starts as the
    identity (Peebles and Xie 2023, adaLN-Zero).
    """
    width = HEADS * HEAD_WIDTH
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and (name.endswith("linear") or name == "proj_out"):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    return model


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build the scheduler: rectified flow, sigmas evenly spaced."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def build_text_encoders(
    tokenizer: CLIPTokenizer,
) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """Build both text encoders; they differ in the random numbers that they start from."""
    first, second = (build_projected_text_encoder(tokenizer) for _ in range(2))
    return first, second


def build_mmdit_pipeline(
    vae: AutoencoderKL,
    transformer: SD3Transformer2DModel,
    text_encoders: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    tokenizer: CLIPTokenizer,
) -> StableDiffusion3Pipeline:
    """Put the parts together as an ordinary Stable Diffusion 3 pipeline without a T5 encoder."""
    vae.register_to_config(shift_factor=0.0)
    return cast(Any, StableDiffusion3Pipeline)(
        transformer=transformer.eval(),
        scheduler=build_flow_scheduler(),
        vae=vae.eval(),
        text_encoder=text_encoders[0].eval(),
        tokenizer=tokenizer,
        text_encoder_2=text_encoders[1].eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def encode_tokens(
    text_encoders: tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection],
    tokens: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode tokens ``(B, T)`` as the pipeline does.

    Returns:
        Hidden states ``(B, T + 1, 256)``: those before each encoder's last layer, side by side,
        and behind them one of the equal zero tokens that stand for the absent T5 encoder; and the
        pooled vectors ``(B, 256)``.
    """
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in text_encoders]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    pooled = torch.cat([out.text_embeds for out in outputs], dim=-1)
    return nn.functional.pad(hidden, (0, 0, 0, 1)), pooled
