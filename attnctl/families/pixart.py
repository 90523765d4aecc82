"""PixArt-alpha, PixArt-Sigma and Sana: self- and cross-attention."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    patch = config["patch_size"]
    height, width = (side // patch for side in inputs["hidden_states"].shape[-2:])
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    return Layout((1, height, width), slice(0, height * width), text)


PIXART = register_family(
    Family(
        name="PixArt",
        classes=("PixArtTransformer2DModel",),
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1},
        blocks=(BlockList("transformer_blocks", streams=("hidden_states",)),),
        layout=_layout,
    )
)

# Its self-attention is linear and never forms a map; its cross-attention is like PixArt's.
SANA = register_family(replace(PIXART, name="Sana", classes=("SanaTransformer2DModel",)))
