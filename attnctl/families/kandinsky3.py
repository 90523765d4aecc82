"""Kandinsky 3: a U-Net whose blocks attend to themselves once, and to the text after each layer."""

from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.families import Family, register_family
from attnctl.families.unet import UNET_BLOCKS, unet_layout, unet_site
from attnctl.sites import Site


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("add_time_condition"):
        return None  # pools the text
    is_first = ".attentions.0." in path
    return replace(unet_site(path, module, config), kind="self" if is_first else "cross")


KANDINSKY3 = register_family(
    Family(
        name="Kandinsky 3",
        classes=("Kandinsky3UNet",),
        denoisers=("unet",),
        latents="sample",
        from_cond=True,
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 2},
        blocks=tuple(one for one in UNET_BLOCKS if one.path != "mid_block"),
        site=_site,
        layout=unet_layout,
    )
)
