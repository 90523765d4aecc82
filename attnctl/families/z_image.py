"""Z-Image: joint attention over [image, text], each filled up to a multiple of 32 tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site

_MULTIPLE = 32
_CLOSING = "<|im_end|>"


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith(("context_refiner", "siglip_refiner")):
        return None  # text, or a given picture, among itself
    site = generic_site(path, module, config)
    return site if path.startswith("noise_refiner") else replace(site, kind="joint")


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    if isinstance(inputs["x"][0], list):
        return None  # several pictures a row, such as given ones
    frames, height, width = inputs["x"][0].shape[-3:]
    patch = inputs.get("patch_size", 2)
    grid = (frames // inputs.get("f_patch_size", 1), height // patch, width // patch)
    tokens = grid[0] * grid[1] * grid[2]
    if site.kind == "self":
        return Layout(grid, slice(0, tokens))
    start = tokens + -tokens % _MULTIPLE
    return Layout(grid, slice(0, tokens), slice(start, start + max(map(len, inputs["cap_feats"]))))


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Qwen's tokens, with those of the chat around the prompt."""
    (segment,) = segments
    empty = [{"role": "user", "content": ""}]
    chat = segment.tokenizer.apply_chat_template(empty, tokenize=False, add_generation_prompt=True)
    count = len(segment.tokenizer(chat.split(_CLOSING)[0]).input_ids)
    length = max(0, segment.length - count)
    return (replace(segment, offset=count, template=count, length=length, closing=_CLOSING),)


Z_IMAGE = register_family(
    Family(
        name="Z-Image",
        classes=("ZImageTransformer2DModel",),
        branches=("cond", "uncond"),
        from_cond=True,
        latents="x",
        listed=frozenset({"x", "cap_feats"}),
        batched=ROW_ARGUMENTS | {"x", "cap_feats", "t"},
        blocks=(
            BlockList("noise_refiner", streams=("x",)),
            BlockList("layers", streams=("x",)),
        ),
        site=_site,
        layout=_layout,
        text=_text_of,
    )
)
