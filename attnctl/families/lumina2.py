"""Lumina 2: joint attention over [text, image], without the padding of the text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from attnctl.calls import Layout
from attnctl.families import Family, register_family
from attnctl.segments import TextSegment
from attnctl.sites import BlockList, Site, generic_site


def _site(path: str, module: nn.Module, config: Any) -> Site | None:
    if path.startswith("context_refiner"):
        return None  # text among itself, before the blocks
    site = generic_site(path, module, config)
    return site if path.startswith("noise_refiner") else replace(site, kind="joint")


def _layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    height, width = (side // config["patch_size"] for side in inputs["hidden_states"].shape[-2:])
    if site.kind == "self":
        return Layout((1, height, width), slice(0, height * width))
    lengths = inputs["encoder_attention_mask"].sum(dim=1)
    if lengths.min() != lengths.max():
        return None  # the image begins elsewhere in each row
    text = int(lengths[0])
    return Layout((1, height, width), slice(text, text + height * width), slice(0, text))


def _text_of(pipe: Any, segments: Sequence[TextSegment]) -> tuple[TextSegment, ...]:
    """Gemma's tokens; the system prompt stays in front of the prompt and has words, too."""
    system = f"{pipe.system_prompt} <Prompt Start> "
    return tuple(replace(segment, prepare=lambda prompt: system + prompt) for segment in segments)


LUMINA2 = register_family(
    Family(
        name="Lumina 2",
        classes=("Lumina2Transformer2DModel",),
        separate=True,
        combine="renormalised",
        prompt_arguments={"encoder_hidden_states": 0, "encoder_attention_mask": 1},
        blocks=(
            BlockList("noise_refiner", streams=("hidden_states",)),
            BlockList("layers", streams=("hidden_states",)),
        ),
        site=_site,
        layout=_layout,
        text=_text_of,
    )
)
