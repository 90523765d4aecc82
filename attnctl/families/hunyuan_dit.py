"""HunyuanDiT2DModel: Hunyuan-DiT. Self- and cross-attention; texts of CLIP and T5 in a row."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.sites import BlockList, Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    patch = config["patch_size"]
    height, width = (side // patch for side in inputs["hidden_states"].shape[-2:])
    text = None
    if site.kind == "cross":
        names = ("encoder_hidden_states", "encoder_hidden_states_t5")
        text = slice(0, sum(inputs[name].shape[1] for name in names))
    return Layout((1, height, width), slice(0, height * width), text)


HUNYUAN_DIT = register_family(
    Family(
        name="Hunyuan-DiT",
        classes=("HunyuanDiT2DModel",),
        batched=ROW_ARGUMENTS
        | {
            "encoder_hidden_states_t5",
            "text_embedding_mask",
            "text_embedding_mask_t5",
            "image_meta_size",
            "style",
        },
        blocks=(BlockList("blocks", streams=("hidden_states",)),),
        layout=_layout,
    )
)
