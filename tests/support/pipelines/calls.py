"""What each tiny pipeline wants to be called with, and how tests make it run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from tests.support.pipelines.parts import PIXELS, edges, half_mask, picture, seeded
from tests.support.pipelines.text import T5_LENGTH

PROMPT = "a cat and a frog"
LEFT_OUT = object()  # as a value: the pipeline has no such parameter
T5 = {"max_sequence_length": T5_LENGTH}


def square(pixels: int = PIXELS, **more: Any) -> dict[str, Any]:
    """Height and width in pixels."""
    return {"height": pixels, "width": pixels, **more}


def painted() -> dict[str, Any]:
    """A picture, and a mask over its right half."""
    return {"image": picture(), "mask_image": half_mask(), "strength": 1.0}


PIXART = {**T5, "use_resolution_binning": False, "clean_caption": False}
CLASS_LABEL = {"class_labels": [3], "prompt": LEFT_OUT, "output_type": "np"}

ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "StableDiffusionPipeline": square,
    "StableDiffusionImg2ImgPipeline": lambda: {"image": picture(), "strength": 1.0},
    "StableDiffusionInpaintPipeline": lambda: square(**painted()),
    "StableDiffusionInstructPix2PixPipeline": lambda: {"image": picture()},
    "StableDiffusionControlNetPipeline": lambda: square(image=edges()),
    "StableDiffusionXLPipeline": square,
    "StableDiffusion3Pipeline": lambda: square(**T5),
    "FluxPipeline": lambda: square(**T5),
    "PixArtAlphaPipeline": lambda: square(**PIXART),
    "PixArtSigmaPipeline": lambda: square(**PIXART),
    "AuraFlowPipeline": lambda: square(**T5),
    # The factor of 8 between pixels and latents is fixed in this pipeline.
    "Lumina2Pipeline": lambda: square(128, system_prompt="a", max_sequence_length=48),
    "DiTPipeline": lambda: dict(CLASS_LABEL),
    "AnimateDiffPipeline": lambda: square(num_frames=3),
    "CogVideoXPipeline": lambda: square(64, num_frames=9, **T5),
    "WanPipeline": lambda: square(64, num_frames=9, **T5),
    "LattePipeline": lambda: square(video_length=2, clean_caption=False, mask_feature=False),
}


def generate(
    pipe: DiffusionPipeline,
    prompt: str | list[str] = PROMPT,
    steps: int = 2,
    seed: int = 0,
    **changes: Any,
) -> Tensor:
    """Run a tiny pipeline and return its last latents (DiT: the picture).

    Args:
        pipe: Any pipeline whose class stands in ``ARGUMENTS``.
        prompt: One prompt, or a list; item k of a list starts from ``seed + k``.
        steps: Steps of the scheduler.
        seed: Of a fresh generator.
        changes: Further arguments of the pipeline; they win over the usual ones.
    """
    arguments: dict[str, Any] = {
        "prompt": prompt,
        "num_inference_steps": steps,
        "generator": generators(prompt, seed),
        "output_type": "latent",
        **ARGUMENTS[type(pipe).__name__](),
        **changes,
    }
    if not isinstance(prompt, str):
        arguments.update(repeated(arguments, len(prompt)))
    output = pipe(**{name: value for name, value in arguments.items() if value is not LEFT_OUT})
    return torch.as_tensor(output.frames if hasattr(output, "frames") else output.images)


def repeated(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """Give each prompt its own copy of a picture, so that its generator encodes it."""
    return {
        name: [value] * count for name, value in arguments.items() if isinstance(value, Image.Image)
    }


def generators(prompt: str | list[str], seed: int) -> torch.Generator | list[torch.Generator]:
    """One generator; for a list of prompts one each, so that item k equals a run alone."""
    if isinstance(prompt, str):
        return seeded(seed)
    return [seeded(seed + place) for place in range(len(prompt))]
