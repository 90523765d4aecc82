"""FLUX.3: text and image among themselves first, then jointly over [text, image, references]."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, register_family
from attnctl.families.flux import FLUX2, STREAMS
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    site = generic_site(path, module, config)
    if path.startswith("single_transformer_blocks"):
        return replace(site, kind="joint", stage="single")
    return site if path.startswith("mode_blocks.image.") else None


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    layout = FLUX2.layout(site, inputs, config)
    if layout is None or site.kind == "joint":
        return layout
    return Layout(layout.grid, slice(0, layout.image.stop - layout.image.start))


FLUX3 = register_family(
    replace(
        FLUX2,
        name="FLUX.3",
        classes=("Flux3Transformer2DModel",),
        batched=ROW_ARGUMENTS | {"image_cond_hidden_states", "target_timestep"},
        site=_site,
        blocks=(BlockList("single_transformer_blocks", streams=STREAMS),),
        layout=_layout,
    )
)
