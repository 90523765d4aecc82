"""Tiny pipelines around a picture transformer."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.support.denoisers.entry import wake_silent_parameters
from tests.support.pipelines.entry import TinyPipeline
from tests.support.pipelines.parts import ddim, decoder, flow
from tests.support.pipelines.text import (
    WIDTH,
    clip_text,
    clip_text_projected,
    clip_tokenizer,
    gemma_text,
    t5_text,
    t5_tokenizer,
    umt5_text,
)

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def stable_diffusion_3(**changes: Any) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: two CLIP encoders side by side, then T5, in one sequence."""
    first, second = clip_tokenizer(), clip_tokenizer()
    transformer = SD3Transformer2DModel(
        **HEADS,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        **changes,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=decoder(shift=0.1),
        text_encoder=clip_text_projected(first),
        tokenizer=first,
        text_encoder_2=clip_text_projected(second),
        tokenizer_2=second,
        text_encoder_3=t5_text(width=2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux(guided: bool = False) -> FluxPipeline:
    """Flux: T5 tokens, a pooled CLIP vector, packed latents."""
    tokenizer = clip_tokenizer()
    transformer = FluxTransformer2DModel(
        **HEADS,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=decoder(shift=0.1),
        text_encoder=clip_text(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
    )


def pixart_parts() -> dict[str, Any]:
    """Everything that both PixArt pipelines take."""
    transformer = PixArtTransformer2DModel(
        **HEADS,
        sample_size=16,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    return {
        "transformer": transformer,
        "scheduler": DPMSolverMultistepScheduler(),
        "vae": decoder(),
        "text_encoder": t5_text(),
        "tokenizer": t5_tokenizer(),
    }


def aura_flow() -> AuraFlowPipeline:
    """AuraFlow: joint, then single-stream blocks."""
    transformer = AuraFlowTransformer2DModel(
        **HEADS,
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    wake_silent_parameters(transformer, gain=3.0)
    return AuraFlowPipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=decoder(),
        text_encoder=umt5_text(),
        tokenizer=t5_tokenizer(),
    )


def dit() -> DiTPipeline:
    """DiT: class labels instead of prompts; the conditional rows come first."""
    transformer = DiTTransformer2DModel(
        **HEADS,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        num_embeds_ada_norm=1000,
    )
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight)
    return DiTPipeline(transformer=transformer, vae=decoder(), scheduler=ddim())


def lumina2() -> Lumina2Pipeline:
    """Lumina 2: one call a branch, and guidance that keeps the norm."""
    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=WIDTH,
    )
    return Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=decoder(shift=0.1),
        text_encoder=gemma_text(),
        tokenizer=t5_tokenizer(),
    )


TRANSFORMER_PIPELINES = (
    TinyPipeline("sd3", stable_diffusion_3, family="sd3"),
    TinyPipeline(
        "sd35",
        lambda: stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0,)),
        family="sd3",
    ),
    TinyPipeline("flux", flux, family="flux", batched=False),
    TinyPipeline("flux_dev", lambda: flux(guided=True), family="flux", batched=False),
    TinyPipeline("pixart_alpha", lambda: PixArtAlphaPipeline(**pixart_parts()), family="pixart"),
    TinyPipeline("pixart_sigma", lambda: PixArtSigmaPipeline(**pixart_parts()), family="pixart"),
    TinyPipeline("aura_flow", aura_flow, family="aura_flow"),
    TinyPipeline("lumina2", lumina2, family="lumina2", batched=False),
    TinyPipeline("dit", dit, family="dit"),
)
