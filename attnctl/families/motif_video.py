"""Motif-Video: joint attention over [video, picture, text]; some blocks attend to text besides."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Kind, Site, generic_site

_STREAMS = ("hidden_states", "encoder_hidden_states")


def _site(path: str, module: nn.Module, config: Any) -> Site:
    stack, number, name = path.split(".")
    stage = "single" if stack == "single_transformer_blocks" else "double"
    # The last single blocks attend to the video alone: as it is, and as it was before all blocks.
    text_ends = config["num_single_layers"] - config["num_decoder_layers"]
    kind: Kind = "self" if stage == "single" and int(number) >= text_ends else "joint"
    kind = "cross" if name == "cross_attn" else kind
    return replace(generic_site(path, module, config), kind=kind, stage=stage)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    frames, height, width = inputs["hidden_states"].shape[-3:]
    patch = config["patch_size"]
    grid = (frames // config["patch_size_t"], height // patch, width // patch)
    tokens = grid[0] * grid[1] * grid[2]
    picture = inputs.get("image_embeds")
    start = tokens + (0 if picture is None else picture.shape[1])
    start = {"joint": start, "cross": 0}.get(site.kind)
    length = inputs["encoder_hidden_states"].shape[1]
    text = None if start is None else slice(start, start + length)
    return Layout(grid, slice(0, tokens), text, is_video=True)


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    is_behind = segments[0].tokenizer.padding_side == "left"
    return (replace(segments[0], is_behind=is_behind),)


MOTIF_VIDEO = register_family(
    Family(
        name="Motif-Video",
        classes=("MotifVideoTransformer3DModel",),
        separate=True,
        batched=ROW_ARGUMENTS | {"image_embeds"},
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 2},
        blocks=(
            BlockList("transformer_blocks", streams=_STREAMS),
            BlockList("single_transformer_blocks", streams=_STREAMS),
        ),
        layout=_layout,
        text=_text_of,
    )
)
