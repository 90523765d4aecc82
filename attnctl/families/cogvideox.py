"""CogVideoXTransformer3DModel. Joint attention over [text, video], latents (B, F, C, H, W)."""

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
    _, frames, _, height, width = inputs["hidden_states"].shape
    patch, patch_frames = config["patch_size"], config.get("patch_size_t") or 1
    grid = (-(-frames // patch_frames), height // patch, width // patch)
    text = inputs["encoder_hidden_states"].shape[1]
    image = slice(text, text + grid[0] * grid[1] * grid[2])
    return Layout(grid, image, slice(0, text), is_video=True)


COGVIDEOX = register_family(
    Family(
        name="CogVideoX",
        classes=("CogVideoXTransformer3DModel",),
        channels_axis=2,
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0},
        blocks=(
            BlockList("transformer_blocks", streams=("hidden_states", "encoder_hidden_states")),
        ),
        layout=_layout,
    )
)
CONSISID = register_family(
    replace(
        COGVIDEOX,
        name="ConsisID",
        classes=("ConsisIDTransformer3DModel",),
        batched=ROW_ARGUMENTS | {"id_cond", "id_vit_hidden"},
    )
)
