"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5. Joint attention over [image, text]."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    patch = config["patch_size"]
    height, width = (side // patch for side in inputs["hidden_states"].shape[-2:])
    image = slice(0, height * width)
    if site.kind != "joint":
        return Layout((1, height, width), image)
    text = inputs["encoder_hidden_states"].shape[1]
    return Layout((1, height, width), image, slice(image.stop, image.stop + text))


SD3 = register_family(
    Family(
        name="SD3 and SD3.5",
        classes=("SD3Transformer2DModel",),
        prompt_arguments={"encoder_hidden_states": 0, "pooled_projections": 2},
        blocks=(
            BlockList("transformer_blocks", streams=("encoder_hidden_states", "hidden_states")),
        ),
        layout=_layout,
    )
)
