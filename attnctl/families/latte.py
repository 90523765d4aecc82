"""Latte: attention over space and to the text, then over time, in two stacks that take turns."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    frames, height, width = inputs["hidden_states"].shape[-3:]
    grid = (frames, height // config["patch_size"], width // config["patch_size"])
    if site.kind == "temporal":
        return Layout(grid, slice(0, frames), None, "positions", is_video=True)
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    return Layout(grid, slice(0, grid[1] * grid[2]), text, "frames", is_video=True)


LATTE = register_family(Family(name="Latte", classes=("LatteTransformer3DModel",), layout=_layout))
