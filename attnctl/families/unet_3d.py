"""UNets of clips with attention over space, then over time: ModelScope, I2VGen-XL, Stable Video."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.families.unet import UNET_BLOCKS, unet_grid, unet_site
from attnctl.families.unet_motion import clip_layout
from attnctl.sites import Site


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("image_latents_temporal_encoder"):
        return None  # I2VGen-XL: the given picture, before the blocks
    site = unet_site(path, module, config)
    return replace(site, kind="temporal") if path.startswith("transformer_in") else site


UNET_3D = register_family(
    Family(
        name="UNet3D (ModelScope, I2VGen-XL)",
        classes=("UNet3DConditionModel", "I2VGenXLUNet"),
        denoisers=("unet",),
        latents="sample",
        batched=ROW_ARGUMENTS | {"fps", "image_latents", "image_embeddings"},
        prompt_arguments={"encoder_hidden_states": 0},
        blocks=UNET_BLOCKS,
        site=_site,
        layout=clip_layout,
    )
)


def _stable_video_site(path: str, module: nn.Module, config: Any) -> Site:
    """Behind attention over time stands one to the given picture, from each place."""
    site = unet_site(path, module, config)
    return replace(site, kind="cross") if path.endswith("attn2") else site


def _stable_video_layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    height, width = unet_grid(site, inputs)
    frames = inputs["sample"].shape[1]
    if "temporal" in site.path:
        return Layout((frames, height, width), slice(0, frames), None, "positions", is_video=True)
    image = slice(0, height * width)
    return Layout((frames, height, width), image, None, "frames", is_video=True)


STABLE_VIDEO = register_family(
    Family(
        name="Stable Video Diffusion",
        classes=("UNetSpatioTemporalConditionModel",),
        denoisers=("unet",),
        latents="sample",
        channels_axis=2,
        batched=ROW_ARGUMENTS | {"added_time_ids"},
        blocks=UNET_BLOCKS,
        site=_stable_video_site,
        layout=_stable_video_layout,
    )
)
