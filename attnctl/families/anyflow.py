"""AnyFlow: Wan's blocks, with latents (B, F, C, H, W) and both branches in one batch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, register_family
from attnctl.families.wan import WAN
from attnctl.sites import Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    _, frames, _, height, width = inputs["hidden_states"].shape
    latents = torch.empty(1, 1, frames, height, width, device="meta")  # as Wan has them
    return WAN.layout(site, {**inputs, "hidden_states": latents}, config)


ANYFLOW = register_family(
    replace(
        WAN,
        name="AnyFlow",
        classes=("AnyFlowTransformer3DModel",),
        denoisers=("transformer",),
        separate=False,
        channels_axis=2,
        batched=ROW_ARGUMENTS | {"r_timestep"},
        layout=_layout,
    )
)
