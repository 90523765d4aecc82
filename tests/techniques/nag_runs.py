"""Runs of tiny pipelines with NAG, and what tests compare them by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import attnctl
from attnctl import NAG
from tests.support.pipelines import generate
from tests.techniques.nag_reference import guide

NEGATIVE = "a red dog"
CROSS = ("sd1", "sdxl", "pixart_sigma", "animatediff", "wan", "wan22")
JOINT = ("flux", "flux_dev", "sd3", "sd35", "cogvideox")
DEFAULTS = guide(4.0, 2.5, 0.25, 2)
ROUNDING = 2e-5  # of the size of the latents: rows that share a forward round differently


def steered(pipe: Any, *techniques: Any, **changes: Any) -> Tensor:
    """Run a pipeline with techniques attached; with NAG if none are named."""
    with attnctl.attach(pipe, techniques or [NAG(NEGATIVE)]):
        return generate(pipe, **changes)


def assert_close(ours: Tensor, theirs: Tensor, plain: Tensor) -> None:
    """Equal up to rounding, where the effect is far above it."""
    size = float(theirs.abs().max())
    assert float((theirs - plain).abs().max()) > 100 * ROUNDING * size
    assert float((ours - theirs).abs().max()) < ROUNDING * size


@torch.no_grad()
def encoded(pipe: Any, text: str, **settings: Any) -> tuple[Any, ...]:
    """What the pipeline makes of one prompt."""
    guided = {"do_classifier_free_guidance": False}
    if "Flux" in type(pipe).__name__:
        guided = {}
    if hasattr(pipe, "tokenizer_3"):
        settings |= {"prompt_3": None}
    if hasattr(pipe, "tokenizer_2"):
        settings |= {"prompt_2": None}
    count = "num_videos_per_prompt" if "Wan" in type(pipe).__name__ else "num_images_per_prompt"
    return pipe.encode_prompt(text, device=pipe.device, **{count: 1}, **guided, **settings)


def model_end(model: Any) -> Any:
    """The last layer of a denoiser."""
    return model.conv_out if hasattr(model, "conv_out") else model.proj_out
