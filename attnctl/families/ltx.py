"""LTXVideoTransformer3DModel: self-attention over all frames, cross-attention to the text."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site:
    kind = "cross" if path.endswith("attn2") else "self"
    return replace(generic_site(path, module, config), kind=kind)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    sides = [inputs.get(name) for name in ("num_frames", "height", "width")]
    if None in sides:
        return None  # a call with coordinates instead: how the tokens lie is not told
    frames, height, width = (int(side) for side in sides if side is not None)
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    image = slice(0, frames * height * width)
    return Layout((frames, height, width), image, text, is_video=True)


LTX = register_family(
    Family(
        name="LTX-Video",
        classes=("LTXVideoTransformer3DModel",),
        channels_axis=2,
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1},
        blocks=(BlockList("transformer_blocks", streams=("hidden_states",)),),
        layout=_layout,
    )
)
