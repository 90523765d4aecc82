"""HunyuanImage 2.1: joint attention over [image, glyphs, text, padding]; one call a branch."""

from collections.abc import Mapping
from typing import Any

from attnctl.calls import Layout
from attnctl.families import ROW_ARGUMENTS, Family, register_family
from attnctl.families.hunyuan_video import HUNYUAN_VIDEO
from attnctl.families.hunyuan_video15 import GLYPHS, text_of
from attnctl.sites import Site


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    sizes = inputs["hidden_states"].shape[2:]
    sides = [size // patch for size, patch in zip(sizes, config["patch_size"], strict=True)]
    frames, height, width = sides if len(sides) == 3 else (1, *sides)  # the refiner has frames
    tokens = frames * height * width
    return Layout((frames, height, width), slice(0, tokens), _text(inputs, tokens))


def _text(inputs: Mapping[str, Any], tokens: int) -> slice | None:
    """Where the prompt lies behind the image; ``None`` if it begins elsewhere in each row."""
    start = tokens
    glyphs = inputs.get("encoder_attention_mask_2")
    if glyphs is not None and inputs.get("encoder_hidden_states_2") is not None:
        counts = glyphs.bool().sum(1)
        if counts.min() != counts.max():
            return None
        start += int(counts[0])
    return slice(start, start + int(inputs["encoder_attention_mask"].bool().sum(1).max()))


HUNYUAN_IMAGE = register_family(
    Family(
        name="HunyuanImage",
        classes=("HunyuanImageTransformer2DModel",),
        separate=True,
        batched=ROW_ARGUMENTS | GLYPHS.keys() | {"timestep_r"},
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1, **GLYPHS},
        site=HUNYUAN_VIDEO.site,
        blocks=HUNYUAN_VIDEO.blocks,
        layout=_layout,
        text=text_of,
    )
)
