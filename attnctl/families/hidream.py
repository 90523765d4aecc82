"""HiDream: joint attention over [image, T5, last layer of Llama, the block's layer of Llama]."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site

_LLAMA = "encoder_hidden_states_llama3"
_TEXTS = {"encoder_hidden_states_t5", _LLAMA, "pooled_embeds"}


def _site(path: str, module: nn.Module, config: Any) -> Site:
    stage = "single" if path.startswith("single_stream_blocks") else "double"
    return replace(generic_site(path, module, config), kind="joint", stage=stage)


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    latents, patch = inputs["hidden_states"], config["patch_size"]
    if latents.ndim != 4:
        return None  # patches already, whose places come beside them
    height, width = (side // patch for side in latents.shape[-2:])
    most = config["max_resolution"][0] * config["max_resolution"][1] // patch**2
    start = height * width if height == width else most  # other forms are filled up
    length = inputs["encoder_hidden_states_t5"].shape[1] + 2 * inputs[_LLAMA][0].shape[1]
    return Layout((1, height, width), slice(0, height * width), slice(start, start + length))


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """T5's tokens; where Llama's begin depends on ``max_sequence_length`` of the call."""
    return tuple(segment for segment in segments if segment.encoder == "text_encoder_3")


HIDREAM = register_family(
    Family(
        name="HiDream",
        classes=("HiDreamImageTransformer2DModel",),
        batched=ROW_ARGUMENTS | _TEXTS | {"timesteps"},
        layered=frozenset({_LLAMA}),
        blocks=(
            BlockList("double_stream_blocks", streams=("hidden_states", "encoder_hidden_states")),
            BlockList("single_stream_blocks", streams=("hidden_states",)),
        ),
        site=_site,
        layout=_layout,
        text=_text_of,
    )
)
