"""Pipelines of real sizes with random weights, without text encoders and decoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

STEPS = 10
PAG_SCALE = 3.0


@dataclass(frozen=True)
class Size:
    """What is drawn, in pixels and frames, and the text that goes with it.

    A picture has no ``frames``; a model without pooled text has no ``pooled``.
    """

    height: int
    width: int
    text: int
    channels: int
    pooled: int = 0
    frames: int = 0


@dataclass(frozen=True)
class Model:
    """One model at its real and its toy size.

    Attributes:
        name: What tables call it.
        pipeline: Class of its pipeline.
        denoiser: Class of its denoiser, ``unet`` or ``transformer`` by its name.
        real: Its configuration, and what it draws.
        toy: The same at toy size.
        where: Sites of fast attention.
        pag: Pipeline with perturbed-attention guidance in diffusers, where it acts there and in
            ours, for the real and the toy size; None if there is none.
        options: More arguments of the pipeline's call.
        mask: Whether the pipeline wants masks beside the text.
    """

    name: str
    pipeline: str
    denoiser: str
    real: tuple[dict[str, Any], Size]
    toy: tuple[dict[str, Any], Size]
    where: str
    pag: tuple[str, tuple[str, str], tuple[str, str]] | None = None
    options: Callable[[], dict[str, Any]] = dict
    mask: bool = False
    scheduler: str = "FlowMatchEulerDiscreteScheduler"

    def build(self, device: str, dtype: torch.dtype, *, toy: bool) -> Any:
        """Make the pipeline, its weights where they will be used."""
        config = (self.toy if toy else self.real)[0]
        before = torch.get_default_dtype()
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                denoiser = getattr(diffusers, self.denoiser)(**config).eval()
        finally:
            torch.set_default_dtype(before)
        part = "unet" if "UNet" in self.denoiser else "transformer"
        return self.around(getattr(diffusers, self.pipeline), {part: denoiser.to(device, dtype)})

    def around(self, cls: Any, parts: dict[str, Any], **more: Any) -> Any:
        """A pipeline around these parts; the others are missing."""
        code = cls.__init__.__code__
        names = code.co_varnames[1 : code.co_argcount]
        missing = ("vae", "text_", "tokenizer", "image_encoder", "feature_extractor")
        given = dict.fromkeys(name for name in names if name.startswith(missing))
        given |= {"scheduler": getattr(diffusers, self.scheduler)(), **parts, **more}
        pipe = cls(**{name: value for name, value in given.items() if name in names})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(self, pipe: Any, *, toy: bool, steps: int) -> dict[str, Any]:
        """Arguments of a call: random text, a fixed seed, latents out."""
        size = (self.toy if toy else self.real)[1]
        denoiser = denoiser_of(pipe)
        source = torch.Generator().manual_seed(7)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source).to(denoiser.device, denoiser.dtype)

        given: dict[str, Any] = {
            "num_inference_steps": steps,
            "height": size.height,
            "width": size.width,
            "generator": torch.Generator().manual_seed(7),
            "output_type": "latent",
            **self.options(),
        }
        if size.frames:
            given["num_frames"] = size.frames
        for prefix in [""] if self.pipeline == "FluxPipeline" else ["", "negative_"]:
            given[f"{prefix}prompt_embeds"] = noise(1, size.text, size.channels)
            if size.pooled:
                given[f"{prefix}pooled_prompt_embeds"] = noise(1, size.pooled)
            if self.mask:
                given[f"{prefix}prompt_attention_mask"] = torch.ones(
                    1, size.text, device=denoiser.device
                )
        return given


def denoiser_of(pipe: Any) -> Any:
    """The denoiser of a pipeline."""
    return getattr(pipe, "unet", None) or pipe.transformer


_SDXL = {
    "addition_embed_type": "text_time",
    "use_linear_projection": True,
    "in_channels": 4,
    "out_channels": 4,
}
_SD3 = {"qk_norm": "rms_norm", "patch_size": 2}
_PIXART = {
    "norm_type": "ada_norm_single",
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "use_additional_conditions": False,
    "norm_elementwise_affine": False,
}
_WAN = {"patch_size": (1, 2, 2), "cross_attn_norm": True, "qk_norm": "rms_norm_across_heads"}

MODELS = (
    Model(
        "SDXL", "StableDiffusionXLPipeline", "UNet2DConditionModel",
        (_SDXL | {
            "sample_size": 128, "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048, "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }, Size(1024, 1024, 77, 2048, 1280)),
        (_SDXL | {
            "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": [1, 1], "attention_head_dim": [2, 4],
            "cross_attention_dim": 32, "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 80, "norm_num_groups": 8,
        }, Size(256, 256, 16, 32, 32)),
        "self",
        ("StableDiffusionXLPAGPipeline", ("mid", "mid:self"), ("mid", "mid:self")),
        scheduler="DDIMScheduler",
    ),
    Model(
        "SD 3.5 medium", "StableDiffusion3Pipeline", "SD3Transformer2DModel",
        (_SD3 | {
            "sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24,
            "num_attention_heads": 24, "attention_head_dim": 64, "joint_attention_dim": 4096,
            "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
        }, Size(1024, 1024, 333, 4096, 2048)),
        (_SD3 | {
            "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 3,
            "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 32,
            "caption_projection_dim": 32, "pooled_projection_dim": 32, "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
        }, Size(128, 128, 16, 32, 32)),
        "joint",
        ("StableDiffusion3PAGPipeline", ("blocks.14", "layers=14,joint"),
         ("blocks.1", "layers=1,joint")),
    ),
    Model(
        "FLUX.1", "FluxPipeline", "FluxTransformer2DModel",
        ({"num_layers": 19, "num_single_layers": 38, "guidance_embeds": True},
         Size(1024, 1024, 512, 4096, 768)),
        ({
            "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 32,
            "in_channels": 16, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
        }, Size(128, 128, 16, 32, 32)),
        "joint",
    ),
    Model(
        "PixArt-Sigma", "PixArtSigmaPipeline", "PixArtTransformer2DModel",
        (_PIXART | {
            "num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28,
            "cross_attention_dim": 1152, "sample_size": 128, "caption_channels": 4096,
        }, Size(1024, 1024, 300, 4096)),
        (_PIXART | {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
            "cross_attention_dim": 32, "sample_size": 16, "caption_channels": 32,
        }, Size(128, 128, 16, 32)),
        "self",
        ("PixArtSigmaPAGPipeline", ("blocks.14", "layers=14,self"), ("blocks.1", "layers=1,self")),
        lambda: {"use_resolution_binning": False, "negative_prompt": None, "clean_caption": False},
        mask=True,
        scheduler="DDIMScheduler",
    ),
    Model(
        "CogVideoX-2b", "CogVideoXPipeline", "CogVideoXTransformer3DModel",
        ({}, Size(480, 720, 226, 4096, frames=49)),
        ({
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "in_channels": 4,
            "out_channels": 4, "text_embed_dim": 32, "sample_width": 16, "sample_height": 16,
            "sample_frames": 9, "max_text_seq_length": 16, "time_embed_dim": 32,
        }, Size(128, 128, 16, 32, frames=9)),
        "joint",
        scheduler="CogVideoXDDIMScheduler",
    ),
    Model(
        "Wan 2.1 1.3B", "WanPipeline", "WanTransformer3DModel",
        (_WAN | {
            "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960,
            "num_layers": 30, "text_dim": 4096,
        }, Size(480, 832, 512, 4096, frames=81)),
        (_WAN | {
            "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32, "num_layers": 2,
            "text_dim": 32, "in_channels": 4, "out_channels": 4, "freq_dim": 16,
        }, Size(128, 128, 16, 32, frames=9)),
        "self",
    ),
)  # fmt: skip
