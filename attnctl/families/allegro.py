"""Allegro: attention over space and time at once, then to the text."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    frames, height, width = inputs["hidden_states"].shape[-3:]
    patch, patch_frames = config["patch_size"], config["patch_size_t"]
    grid = (-(-frames // patch_frames), height // patch, width // patch)
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    return Layout(grid, slice(0, grid[0] * grid[1] * grid[2]), text, is_video=True)


ALLEGRO = register_family(
    Family(
        name="Allegro",
        classes=("AllegroTransformer3DModel",),
        blocks=(BlockList("transformer_blocks", streams=("hidden_states",)),),
        layout=_layout,
    )
)
