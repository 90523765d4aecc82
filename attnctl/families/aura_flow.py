"""AuraFlowTransformer2DModel: AuraFlow. Joint attention over [registers, text, image]."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site, generic_site

REGISTERS = 8
"""Learned tokens that the model puts before the text."""


def _site(path: str, module: nn.Module, config: Any) -> Site:
    stage = "single" if path.startswith("single_transformer_blocks") else "double"
    return replace(generic_site(path, module, config), kind="joint", stage=stage)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    patch = config["patch_size"]
    height, width = (side // patch for side in inputs["hidden_states"].shape[-2:])
    text = slice(REGISTERS, REGISTERS + inputs["encoder_hidden_states"].shape[1])
    return Layout((1, height, width), slice(text.stop, text.stop + height * width), text)


AURA_FLOW = register_family(
    Family(
        name="AuraFlow",
        classes=("AuraFlowTransformer2DModel",),
        blocks=(
            BlockList(
                "joint_transformer_blocks", streams=("encoder_hidden_states", "hidden_states")
            ),
            BlockList("single_transformer_blocks", streams=("hidden_states",)),
        ),
        site=_site,
        layout=_layout,
    )
)
