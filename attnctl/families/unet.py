"""UNets of pictures: Stable Diffusion 1.x and 2.x, SDXL, and those without a prompt."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site, generic_site


def unet_site(path: str, module: nn.Module, config: Any) -> Site:
    """Read stage and level from the path: ``down_blocks.2.attentions.0...``."""
    site = generic_site(path, module, config)
    levels = len(config["block_out_channels"])
    place, _, rest = path.partition(".")
    if place == "mid_block":
        return replace(site, stage="mid", level=levels - 1)
    block = int(rest.split(".")[0]) if rest.split(".")[0].isdigit() else 0
    if place == "down_blocks":
        return replace(site, stage="down", level=block)
    if place == "up_blocks":
        return replace(site, stage="up", level=levels - 1 - block)
    return site


def halve(size: int, times: int) -> int:
    """Side of a map after ``times`` convolutions of stride 2, each of which rounds up."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


def unet_grid(site: Site, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the image tokens at a site."""
    height, width = inputs["sample"].shape[-2:]
    return halve(height, site.level), halve(width, site.level)


def unet_layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    """One picture a row; text has the keys of cross-attention."""
    height, width = unet_grid(site, inputs)
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    return Layout((1, height, width), slice(0, height * width), text)


UNET_BLOCKS = (
    BlockList("down_blocks", skips=True),
    BlockList("mid_block"),
    BlockList("up_blocks"),
)

UNET = register_family(
    Family(
        name="UNet (SD 1.x, 2.x, SDXL)",
        classes=("UNet2DConditionModel",),
        denoisers=("unet",),
        latents="sample",
        pipeline_branches={
            "StableDiffusionInstructPix2PixPipeline": ("cond", "image", "uncond"),
            "StableDiffusionXLInstructPix2PixPipeline": ("cond", "image", "uncond"),
        },
        prompt_arguments={"encoder_hidden_states": 0},
        blocks=UNET_BLOCKS,
        site=unet_site,
        layout=unet_layout,
    )
)

UNET_UNCONDITIONAL = register_family(
    Family(
        name="UNet without a prompt",
        classes=("UNet2DModel",),
        denoisers=("unet",),
        branches=("cond",),
        latents="sample",
        blocks=UNET_BLOCKS,
        site=unet_site,
        layout=unet_layout,
    )
)
