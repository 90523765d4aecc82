"""Wan 2.1, 2.2, VACE, and its kin. One call a guidance branch, two transformers in Wan 2.2."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
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


# Their denoisers are Wan's under another name.
SKYREELS = register_family(
    replace(
        WAN,
        name="SkyReels V2",
        classes=("SkyReelsV2Transformer3DModel",),
        denoisers=("transformer",),
    )
)
CHRONOEDIT = register_family(
    replace(
        WAN,
        name="ChronoEdit",
        classes=("ChronoEditTransformer3DModel",),
        denoisers=("transformer",),
    )
)


def _vace_site(path: str, module: nn.Module, config: Any) -> Site:
    stage = "control" if path.startswith("vace_blocks") else "block"
    return replace(_site(path, module, config), stage=stage)


# A second stack over the same tokens reads the control clip before the blocks run.
WAN_VACE = register_family(
    replace(
        WAN,
        name="Wan VACE",
        classes=("WanVACETransformer3DModel",),
        batched=ROW_ARGUMENTS | {"control_hidden_states"},
        site=_vace_site,
        blocks=(BlockList("vace_blocks"), *WAN.blocks),
    )
)


def _animate_site(path: str, module: nn.Module, config: Any) -> Site | None:
    """Where the video attends to motions of a face, or these to each other, is no site."""
    return _site(path, module, config) if path.startswith("blocks.") else None


WAN_ANIMATE = register_family(
    replace(
        WAN,
        name="Wan Animate",
        classes=("WanAnimateTransformer3DModel",),
        denoisers=("transformer",),
        batched=ROW_ARGUMENTS | {"pose_hidden_states", "face_pixel_values"},
        site=_animate_site,
    )
)
