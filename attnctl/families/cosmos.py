"""Cosmos: attention over space and time at once, then to the text; one call a branch."""

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
    sides = [size // patch for size, patch in zip(sizes, config["patch_size"], strict=True)]
    frames, height, width = sides
    texts = inputs["encoder_hidden_states"]
    text = texts[0] if isinstance(texts, tuple) else texts  # a given picture may come second
    seen = slice(0, text.shape[1]) if site.kind == "cross" else None
    tokens = frames * height * width
    return Layout((frames, height, width), slice(0, tokens), seen, is_video=True)


COSMOS = register_family(
    Family(
        name="Cosmos",
        classes=("CosmosTransformer3DModel",),
        separate=True,
        from_cond=True,
        batched=ROW_ARGUMENTS | {"condition_mask"},
        prompt_arguments={"encoder_hidden_states": 0},
        blocks=(BlockList("transformer_blocks", streams=("hidden_states",)),),
        site=_site,
        layout=_layout,
    )
)
