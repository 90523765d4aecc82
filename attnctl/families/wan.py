"""WanTransformer3DModel: Wan 2.1 and 2.2. One call a guidance branch, two transformers in 2.2."""

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
    sizes = inputs["hidden_states"].shape[-3:]
    frames, height, width = (side // p for side, p in zip(sizes, config["patch_size"], strict=True))
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    image = slice(0, frames * height * width)
    return Layout((frames, height, width), image, text, is_video=True)


def _main_call(module: nn.Module, call: int) -> bool:
    """Image-to-video sites attend to the image's tokens first, then to the text."""
    has_image = getattr(module, "add_k_proj", None) is not None
    return call == (1 if has_image else 0)


WAN = register_family(
    Family(
        name="Wan 2.x",
        classes=("WanTransformer3DModel",),
        denoisers=("transformer", "transformer_2"),
        separate=True,
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0},
        blocks=(BlockList("blocks", streams=("hidden_states",)),),
        layout=_layout,
        main_call=_main_call,
    )
)
