"""Qwen-Image: joint attention over [text, image]; one call a guidance branch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    shapes = inputs["img_shapes"][0]
    frames, height, width = shapes[0] if isinstance(shapes, list) else shapes
    text = inputs["encoder_hidden_states"].shape[1]
    image = slice(text, text + frames * height * width)  # reference pictures come behind it
    return Layout((frames, height, width), image, slice(0, text))


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Tokens behind the template; in edits, pictures stand between the words."""
    if getattr(pipe, "processor", None) is not None:
        return ()
    start, length = pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length
    return (replace(segments[0], template=start, length=length, closing="<|im_end|>"),)


QWEN = register_family(
    Family(
        name="Qwen-Image",
        classes=("QwenImageTransformer2DModel",),
        separate=True,
        combine="renormalised",
        channels_axis=2,
        batched=ROW_ARGUMENTS | {"encoder_hidden_states_mask"},
        blocks=(
            BlockList("transformer_blocks", streams=("encoder_hidden_states", "hidden_states")),
        ),
        layout=_layout,
        text=_text_of,
    )
)
