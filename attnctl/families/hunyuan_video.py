"""HunyuanVideo, and FramePack: joint attention over [video, text], in two stacks of blocks."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
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


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Llama's tokens behind the template; CLIP gives a pooled vector alone."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    template = getattr(parameters.get("prompt_template"), "default", {})
    if "crop_start" not in template or "image_emb_start" in template:
        return ()  # image to video: pictures stand between the words
    start = template["crop_start"]
    return (replace(segments[0], template=start, closing="<|eot_id|>"),)


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
        text=_text_of,
    )
)

# Frames of history beside the latents: name, and sides of a patch in frames, rows and columns.
_HISTORY = {
    "latents_clean": ("indices_latents_clean", (1, 2, 2)),
    "latents_history_2x": ("indices_latents_history_2x", (2, 4, 4)),
    "latents_history_4x": ("indices_latents_history_4x", (4, 8, 8)),
}


def _framepack_layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    """History comes before the video, a picture's features before the text."""
    layout = _layout(site, inputs, config)
    assert layout is not None
    history = 0
    for name, (indices, patch) in _HISTORY.items():
        if inputs.get(name) is not None and inputs.get(indices) is not None:
            sides = zip(inputs[name].shape[-3:], patch, strict=True)
            history += math.prod(-(-side // p) for side, p in sides)
    image = slice(history, history + layout.image.stop)
    start = image.stop + inputs["image_embeds"].shape[1]
    text = slice(start, start + int(inputs["encoder_attention_mask"].sum(1).max()))
    return replace(layout, image=image, text=text)


FRAMEPACK = register_family(
    replace(
        HUNYUAN_VIDEO,
        name="HunyuanVideo FramePack",
        classes=("HunyuanVideoFramepackTransformer3DModel",),
        batched=ROW_ARGUMENTS | {"image_embeds", *_HISTORY},
        layout=_framepack_layout,
    )
)
