"""HunyuanVideo 1.5: joint attention over [video, picture, glyphs, text]; one call a branch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site

GLYPHS = {"encoder_hidden_states_2": 2, "encoder_attention_mask_2": 3}


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("context_embedder"):
        return None  # text among itself, before the blocks
    return replace(generic_site(path, module, config), kind="joint", stage="double")


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    frames, height, width = inputs["hidden_states"].shape[-3:]
    patch = config["patch_size"]
    grid = (frames // config["patch_size_t"], height // patch, width // patch)
    tokens = grid[0] * grid[1] * grid[2]
    return Layout(grid, slice(0, tokens), _text(inputs, tokens), is_video=True)


def _text(inputs: Mapping[str, Any], tokens: int) -> slice | None:
    """Where the prompt lies behind the video: picture and glyphs come first, padding is last."""
    glyphs = inputs["encoder_attention_mask_2"].bool().sum(1)
    if glyphs.min() != glyphs.max():
        return None  # it begins elsewhere in each row
    picture = inputs["image_embeds"]
    start = tokens + int(glyphs[0]) + (picture.shape[1] if bool((picture != 0).any()) else 0)
    return slice(start, start + int(inputs["encoder_attention_mask"].bool().sum(1).max()))


def text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Qwen's tokens behind the template; glyphs are in the prompt, too."""
    start, length = pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length
    return (replace(segments[0], template=start, length=length, closing="<|im_end|>"),)


HUNYUAN_VIDEO15 = register_family(
    Family(
        name="HunyuanVideo 1.5",
        classes=("HunyuanVideo15Transformer3DModel",),
        separate=True,
        batched=ROW_ARGUMENTS | GLYPHS.keys() | {"image_embeds", "timestep_r"},
        site=_site,
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1, **GLYPHS},
        blocks=(
            BlockList("transformer_blocks", streams=("hidden_states", "encoder_hidden_states")),
        ),
        layout=_layout,
        text=text_of,
    )
)
