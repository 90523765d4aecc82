"""Tiny pipelines around a U-Net: Stable Diffusion 1.x and XL with their variants."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.support.pipelines.adapters import feature_extractor, image_encoder
from tests.support.pipelines.entry import TinyPipeline
from tests.support.pipelines.parts import ddim, decoder
from tests.support.pipelines.text import WIDTH, clip_text, clip_text_projected, clip_tokenizer

UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,  # the number of heads, by an old mistake of diffusers
}
DEEP = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
}


def unet(**changes: Any) -> UNet2DConditionModel:
    """Cross-attention at 16 by 16 and 8 by 8 tokens, two heads."""
    return UNet2DConditionModel(**{**UNET, **changes})


def components(**changes: Any) -> dict[str, Any]:
    """Everything that a Stable Diffusion 1.x pipeline takes; ``changes`` go to the U-Net."""
    tokenizer = clip_tokenizer()
    return {
        "unet": unet(**changes),
        "vae": decoder(),
        "text_encoder": clip_text(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": ddim(),
        "safety_checker": None,
        "feature_extractor": feature_extractor(),
        "image_encoder": image_encoder(),
    }


def stable_diffusion(**changes: Any) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x."""
    return StableDiffusionPipeline(**components(**changes), requires_safety_checker=False)


def image_to_image() -> StableDiffusionImg2ImgPipeline:
    """Stable Diffusion 1.x that starts from a picture."""
    return StableDiffusionImg2ImgPipeline(**components(), requires_safety_checker=False)


def inpaint(channels: int = 4) -> StableDiffusionInpaintPipeline:
    """Inpainting; nine channels take mask and masked picture as inputs of the U-Net."""
    parts = components(in_channels=channels)
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def instruct_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    """Editing by instruction; three branches, eight channels."""
    parts = components(in_channels=8)
    return StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)


def controlnet() -> StableDiffusionControlNetPipeline:
    """Stable Diffusion 1.x with a control picture."""
    parts = components()
    control = ControlNetModel.from_unet(
        parts["unet"], conditioning_embedding_out_channels=(8, 16), load_weights_from_unet=False
    )
    for block in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        block.weight.data.normal_(std=0.1)  # zero by design: untrained, it would do nothing
    control.controlnet_cond_embedding.conv_out.weight.data.normal_(std=0.1)
    return StableDiffusionControlNetPipeline(
        **parts, controlnet=control, requires_safety_checker=False
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text encoders, Euler steps that scale the model input."""
    first, second = clip_tokenizer(), clip_tokenizer()
    return StableDiffusionXLPipeline(
        unet=unet(**XL),
        vae=decoder(),
        text_encoder=clip_text(first),
        text_encoder_2=clip_text_projected(second),
        tokenizer=first,
        tokenizer_2=second,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        feature_extractor=feature_extractor(),
        image_encoder=image_encoder(),
        add_watermarker=False,
    )


UNET_PIPELINES = (
    TinyPipeline("sd1", stable_diffusion, family="unet"),
    TinyPipeline("sd1_deep", lambda: stable_diffusion(**DEEP), family="unet"),
    TinyPipeline("sd1_img2img", image_to_image, family="unet"),
    TinyPipeline("sd1_inpaint", inpaint, family="unet"),
    TinyPipeline("sd1_inpaint9", lambda: inpaint(channels=9), family="unet"),
    TinyPipeline("sd1_pix2pix", instruct_pix2pix, family="unet"),
    TinyPipeline("sd1_controlnet", controlnet, family="unet"),
    TinyPipeline("sdxl", stable_diffusion_xl, family="unet"),
)
