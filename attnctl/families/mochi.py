"""MochiTransformer3DModel: joint attention over [video, text], one attention call a row.

The text tokens of a call are those of the row that are no padding, so their number differs from
row to row and no layout tells it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site:
    return replace(generic_site(path, module, config), kind="joint")


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    frames, height, width = inputs["hidden_states"].shape[-3:]
    patch = config["patch_size"]
    grid = (frames, height // patch, width // patch)
    return Layout(grid, slice(0, grid[0] * grid[1] * grid[2]), is_video=True)


def _every_call(module: nn.Module, call: int) -> bool:
    return True


MOCHI = register_family(
    Family(
        name="Mochi 1",
        classes=("MochiTransformer3DModel",),
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1},
        blocks=(
            BlockList("transformer_blocks", streams=("hidden_states", "encoder_hidden_states")),
        ),
        layout=_layout,
        main_call=_every_call,
        calls_a_row=True,
    )
)
