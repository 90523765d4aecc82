"""Krea 2: joint attention over [text, image] in one stream; one call a branch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("text_fusion"):
        return None  # layers and tokens of the text among themselves
    return replace(generic_site(path, module, config), kind="joint")


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    text = inputs["encoder_hidden_states"].shape[1]
    places = inputs["position_ids"][text:]
    height, width = (int(places[:, axis].max() - places[:, axis].min()) + 1 for axis in (1, 2))
    return Layout((1, height, width), slice(text, text + height * width), slice(0, text))


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Qwen's tokens behind the template, then padding, then the end of the template."""
    start, suffix = pipe.prompt_template_encode_start_idx, pipe.prompt_template_encode_suffix
    closing = pipe.tokenizer.tokenize(suffix)[0]
    return (replace(segments[0], template=start, closing=closing),)


KREA2 = register_family(
    Family(
        name="Krea 2",
        classes=("Krea2Transformer2DModel",),
        separate=True,
        from_cond=True,
        channels_axis=2,
        batched=ROW_ARGUMENTS,
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1},
        blocks=(BlockList("transformer_blocks", streams=("hidden_states",)),),
        site=_site,
        layout=_layout,
        text=_text_of,
    )
)
