"""DiTTransformer2DModel: DiT. Self-attention alone; the conditional rows come first."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    patch = config["patch_size"]
    height, width = (side // patch for side in inputs["hidden_states"].shape[-2:])
    return Layout((1, height, width), slice(0, height * width))


DIT = register_family(
    Family(
        name="DiT",
        classes=("DiTTransformer2DModel",),
        branches=("cond", "uncond"),
        blocks=(BlockList("transformer_blocks", streams=("hidden_states",)),),
        layout=_layout,
    )
)
