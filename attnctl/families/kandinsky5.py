"""Kandinsky 5: attention over space and time, then to the text; latents (B, F, H, W, C)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("text_transformer_blocks"):
        return None  # text among itself, before the blocks
    kind = "cross" if path.endswith("cross_attention") else "self"
    return replace(generic_site(path, module, config), kind=kind)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    sparse = inputs.get("sparse_params")
    if sparse is not None and sparse["to_fractal"]:
        return None  # tokens lie in tiles
    sizes = inputs["hidden_states"].shape[1:4]
    sides = [size // patch for size, patch in zip(sizes, config["patch_size"], strict=True)]
    frames, height, width = sides
    text = slice(0, inputs["encoder_hidden_states"].shape[1]) if site.kind == "cross" else None
    tokens = frames * height * width
    return Layout((frames, height, width), slice(0, tokens), text, is_video=True)


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Qwen's tokens behind the template; CLIP gives a pooled vector alone."""
    start = pipe.prompt_template_encode_start_idx
    return (replace(segments[0], template=start, closing="<|im_end|>"),)


KANDINSKY5 = register_family(
    Family(
        name="Kandinsky 5",
        classes=("Kandinsky5Transformer3DModel",),
        separate=True,
        channels_axis=4,
        site=_site,
        layout=_layout,
        blocks=(BlockList("visual_transformer_blocks", streams=("visual_embed",)),),
        text=_text_of,
    )
)
