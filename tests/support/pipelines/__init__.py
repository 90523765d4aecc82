"""Genuine diffusers pipelines at toy size, made from random components without a network."""

from __future__ import annotations

from diffusers import DiffusionPipeline

from tests.support.pipelines.adapters import ip_adapter_state, lora_state
from tests.support.pipelines.calls import PROMPT, generate
from tests.support.pipelines.entry import TinyPipeline
from tests.support.pipelines.parts import picture
from tests.support.pipelines.transformers import TRANSFORMER_PIPELINES
from tests.support.pipelines.unets import UNET_PIPELINES
from tests.support.pipelines.videos import VIDEO_PIPELINES

__all__ = [
    "PIPELINES",
    "PROMPT",
    "TinyPipeline",
    "build",
    "generate",
    "ip_adapter_state",
    "lora_state",
    "picture",
]

PIPELINES: dict[str, TinyPipeline] = {
    entry.name: entry
    for group in (UNET_PIPELINES, TRANSFORMER_PIPELINES, VIDEO_PIPELINES)
    for entry in group
}


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """Make the pipeline of that name; equal seeds give equal twins."""
    return PIPELINES[name].build(seed)
