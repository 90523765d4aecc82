"""FLUX.1, and models of its build: joint attention over [text, image], in two stacks of blocks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.sites import BlockList, Site, generic_site

STREAMS = ("encoder_hidden_states", "hidden_states")


def _site(path: str, module: nn.Module, config: Any) -> Site:
    stage = "single" if path.startswith("single_transformer_blocks") else "double"
    return replace(generic_site(path, module, config), kind="joint", stage=stage)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    ids = inputs["img_ids"]
    ids = ids[0] if ids.dim() == 3 else ids
    ids = ids[ids[:, 0] == ids[0, 0]]  # a reference picture behind the latents has another index
    height, width = (int(ids[:, axis].max() - ids[:, axis].min()) + 1 for axis in (1, 2))
    text = inputs["encoder_hidden_states"].shape[1]
    return Layout((1, height, width), slice(text, text + height * width), slice(0, text))


FLUX = register_family(
    Family(
        name="FLUX.1",
        classes=("FluxTransformer2DModel",),
        branches=("cond",),
        separate=True,
        channels_axis=2,
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0, "pooled_projections": 1},
        blocks=(
            BlockList("transformer_blocks", streams=STREAMS),
            BlockList("single_transformer_blocks", streams=STREAMS),
        ),
        layout=_layout,
    )
)

# Their single blocks are given text and image as one stream.
_ONE_STREAM = (
    BlockList("transformer_blocks", streams=STREAMS),
    BlockList("single_transformer_blocks", streams=("hidden_states",)),
)

FLUX2 = register_family(
    replace(
        FLUX,
        name="FLUX.2",
        classes=("Flux2Transformer2DModel",),
        prompt_arguments={},
        blocks=_ONE_STREAM,
    )
)
CHROMA = register_family(
    replace(
        FLUX,
        name="Chroma",
        classes=("ChromaTransformer2DModel",),
        branches=("uncond", "cond"),
        prompt_arguments={},
        blocks=_ONE_STREAM,
    )
)
LONGCAT = register_family(
    replace(
        CHROMA,
        name="LongCat-Image",
        classes=("LongCatImageTransformer2DModel",),
        combine="renormalised",
        blocks=FLUX.blocks,
    )
)
OVIS = register_family(
    replace(CHROMA, name="Ovis-Image", classes=("OvisImageTransformer2DModel",), blocks=FLUX.blocks)
)
BRIA = register_family(
    replace(
        CHROMA, name="Bria", classes=("BriaTransformer2DModel",), separate=False, blocks=FLUX.blocks
    )
)
FIBO = register_family(
    replace(
        CHROMA,
        name="Bria FIBO",
        classes=("BriaFiboTransformer2DModel",),
        separate=False,
        batched=ROW_ARGUMENTS | {"text_encoder_layers"},
    )
)
