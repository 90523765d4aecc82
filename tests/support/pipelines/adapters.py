"""LoRA and IP-Adapter weights made in memory."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.support.pipelines.parts import seeded
from tests.support.pipelines.text import WIDTH

IMAGE_TOKENS = 4
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP picture encoder with a projection of width 32."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return CLIPVisionModelWithProjection(config).eval()


def feature_extractor() -> CLIPImageProcessor:
    """Resizes pictures to 32 by 32."""
    return CLIPImageProcessor(size=32, crop_size=32)


def lora_state(
    model: nn.Module, prefix: str = "unet", rank: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Make LoRA weights for each attention projection, for ``pipe.load_lora_weights(state)``.

    Args:
        model: The denoiser whose linear layers are found by ``LORA_TARGETS``.
        prefix: Name of the denoiser in the pipeline, ``"unet"`` or ``"transformer"``.
        rank: Inner width of the update.
        seed: Of the random weights; both factors are non-zero, so the LoRA has an effect.
    """
    generator = seeded(seed)
    state: dict[str, Tensor] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and path.endswith(LORA_TARGETS):
            rows, columns = layer.out_features, layer.in_features
            down = torch.randn(rank, columns, generator=generator) / columns**0.5
            state[f"{prefix}.{path}.lora_A.weight"] = down
            state[f"{prefix}.{path}.lora_B.weight"] = torch.randn(rows, rank, generator=generator)
    return state


def ip_adapter_state(unet: UNet2DConditionModel, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Make IP-Adapter weights that a pipeline loads from memory.

    Load with ``pipe.load_ip_adapter(state, subfolder="", weight_name="")``.

    Args:
        unet: Its cross-attention layers get key and value projections for the picture.
        seed: Of the random weights.
    """
    generator = seeded(seed)
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(IMAGE_TOKENS * width, WIDTH, generator=generator) / WIDTH**0.5,
        "proj.bias": torch.zeros(IMAGE_TOKENS * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    layers: dict[str, Tensor] = {}
    cross = [
        path
        for path in unet.attn_processors
        if path.endswith("attn2.processor") and "motion_modules" not in path
    ]
    for place, path in enumerate(cross):
        layer = unet.get_submodule(path.removesuffix(".processor"))
        for name in ("to_k", "to_v"):
            shape = getattr(layer, name).weight.shape
            weight = torch.randn(shape, generator=generator) / width**0.5
            layers[f"{2 * place + 1}.{name}_ip.weight"] = weight
    return {"image_proj": projection, "ip_adapter": layers}
