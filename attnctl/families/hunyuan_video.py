"""HunyuanVideoTransformer3DModel: joint attention over [video, text], in two stacks of blocks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.sites import BlockList, Site, generic_site

_STREAMS = ("hidden_states", "encoder_hidden_states")


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("context_embedder"):
        return None  # text among itself, before the blocks
    stage = "single" if path.startswith("single_transformer_blocks") else "double"
    return replace(generic_site(path, module, config), kind="joint", stage=stage)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    frames, height, width = inputs["hidden_states"].shape[-3:]
    patch = config["patch_size"]
    grid = (frames // config["patch_size_t"], height // patch, width // patch)
    tokens = grid[0] * grid[1] * grid[2]
    text = slice(tokens, tokens + inputs["encoder_hidden_states"].shape[1])
    return Layout(grid, slice(0, tokens), text, is_video=True)


HUNYUAN_VIDEO = register_family(
    Family(
        name="HunyuanVideo",
        classes=("HunyuanVideoTransformer3DModel",),
        branches=("cond",),
        separate=True,
        site=_site,
        prompt_arguments={
            "encoder_hidden_states": 0,
            "pooled_projections": 1,
            "encoder_attention_mask": 2,
        },
        blocks=(
            BlockList("transformer_blocks", streams=_STREAMS),
            BlockList("single_transformer_blocks", streams=_STREAMS),
        ),
        layout=_layout,
    )
)
