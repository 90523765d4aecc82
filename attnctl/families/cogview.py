"""CogView 3 Plus and CogView 4: joint attention over [text, image]."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site:
    return replace(generic_site(path, module, config), kind="joint")


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    patch = config["patch_size"]
    height, width = (side // patch for side in inputs["hidden_states"].shape[-2:])
    text = inputs["encoder_hidden_states"].shape[1]
    return Layout((1, height, width), slice(text, text + height * width), slice(0, text))


COGVIEW3 = register_family(
    Family(
        name="CogView 3 Plus",
        classes=("CogView3PlusTransformer2DModel",),
        batched=ROW_ARGUMENTS | {"original_size", "target_size", "crop_coords"},
        blocks=(
            BlockList("transformer_blocks", streams=("hidden_states", "encoder_hidden_states")),
        ),
        site=_site,
        layout=_layout,
    )
)
COGVIEW4 = register_family(
    replace(COGVIEW3, name="CogView 4", classes=("CogView4Transformer2DModel",), separate=True)
)
