"""Helios: Wan's blocks, with frames of history in front of the video."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, register_family
from attnctl.families.wan import WAN
from attnctl.sites import Site

# Each stretch of history, and how many patches of the video a patch of it is long, high and wide.
_HISTORY = {"short": 1, "mid": 2, "long": 4}


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    layout = WAN.layout(site, inputs, config)
    assert layout is not None
    if site.kind == "cross" and config["guidance_cross_attn"]:
        return layout  # history does not attend to the text
    start = 0
    for name, factor in _HISTORY.items():
        history = inputs.get(f"latents_history_{name}")
        if history is not None and inputs.get(f"indices_latents_history_{name}") is not None:
            sides = zip(history.shape[-3:], config["patch_size"], strict=True)
            start += math.prod(-(-side // (factor * patch)) for side, patch in sides)
    return replace(layout, image=slice(start, start + layout.image.stop))


HELIOS = register_family(
    replace(
        WAN,
        name="Helios",
        classes=("HeliosTransformer3DModel",),
        denoisers=("transformer",),
        batched=ROW_ARGUMENTS
        | {"indices_hidden_states"}
        | {f"{part}_history_{n}" for n in _HISTORY for part in ("latents", "indices_latents")},
        layout=_layout,
    )
)
