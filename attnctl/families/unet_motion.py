"""UNetMotionModel: AnimateDiff. Frames or positions are folded into the batch."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.families.unet import UNET_BLOCKS, unet_grid, unet_site
from attnctl.sites import Site


def clip_layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    """Lay frames in the batch, or positions at temporal sites."""
    height, width = unet_grid(site, inputs)
    frames = inputs["sample"].shape[2]
    if site.kind == "temporal":
        return Layout((frames, height, width), slice(0, frames), None, "positions", is_video=True)
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    image = slice(0, height * width)
    return Layout((frames, height, width), image, text, "frames", is_video=True)


UNET_MOTION = register_family(
    Family(
        name="UNetMotion (AnimateDiff)",
        classes=("UNetMotionModel",),
        denoisers=("unet",),
        latents="sample",
        prompt_arguments={"encoder_hidden_states": 0},
        blocks=UNET_BLOCKS,
        site=unet_site,
        layout=clip_layout,
    )
)
