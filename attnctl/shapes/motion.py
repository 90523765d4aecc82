"""The ``shapes-motion`` pipeline: ``shapes`` with a motion adapter, as AnimateDiff adds one.

Its folder holds the adapter alone; everything else is read from ``shapes``.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AnimateDiffPipeline,
    MotionAdapter,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from torch import nn

FRAMES = 16
"""Frames of a clip in training, and of one that is made."""

MOST_FRAMES = 32
"""Places that the adapter can number."""

ADAPTER = "motion_adapter"
"""Where the adapter lies in the model's folder."""


def build_motion_adapter(unet: UNet2DConditionModel) -> MotionAdapter:
    """Build the adapter for a denoiser: one temporal transformer behind each of its layers.

    Its last projections start at zero, so that frames start as independent pictures.
    """
    config = unet.config
    adapter: MotionAdapter = cast(Any, MotionAdapter)(
        block_out_channels=config["block_out_channels"],
        motion_layers_per_block=config["layers_per_block"],
        motion_num_attention_heads=config["attention_head_dim"],
        motion_norm_num_groups=config["norm_num_groups"],
        motion_max_seq_length=MOST_FRAMES,
    )
    for name, part in adapter.named_modules():
        if isinstance(part, nn.Linear) and name.endswith("proj_out"):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    return adapter


def with_motion(unet: UNet2DConditionModel, adapter: MotionAdapter) -> UNetMotionModel:
    """Copy both into a denoiser of clips, of the dtype of ``unet``."""
    with _quiet():
        made: UNetMotionModel = cast(Any, UNetMotionModel.from_unet2d(unet, adapter))
        return made if made.dtype == unet.dtype else cast(Any, made).to(unet.dtype)


@contextmanager
def _quiet() -> Generator[None]:
    """Leave out what diffusers says of every cast: a warning with an empty list of modules."""
    log = logging.getLogger("diffusers.models.modeling_utils")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def build_motion_pipeline(
    base: StableDiffusionPipeline, adapter: MotionAdapter
) -> AnimateDiffPipeline:
    """Put an adapter between the frames of a Stable Diffusion pipeline's pictures.

    Args:
        base: Its parts are shared; the denoiser's weights are copied.
        adapter: In the dtype of ``base``.
    """
    return cast(Any, AnimateDiffPipeline)(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=with_motion(base.unet, adapter).eval(),
        motion_adapter=adapter.eval(),
        scheduler=base.scheduler,
    )


def load_motion_pipeline(
    base: StableDiffusionPipeline, folder: str | PathLike[str]
) -> AnimateDiffPipeline:
    """Load an adapter and put it on a pipeline of pictures.

    Args:
        base: What the adapter was trained on.
        folder: As :func:`save_motion` writes it; the pipeline is then named after it.
    """
    adapter: Any = MotionAdapter.from_pretrained(folder, subfolder=ADAPTER, use_safetensors=True)
    with _quiet():
        adapter = adapter.to(base.unet.dtype)
    pipe = build_motion_pipeline(base, adapter)
    pipe.register_to_config(_name_or_path=str(folder))
    return pipe


def save_motion(base: StableDiffusionPipeline, adapter: MotionAdapter, folder: Path) -> None:
    """Write an adapter as float16 safetensors, beside the index of its whole pipeline."""
    build_motion_pipeline(base, adapter).save_config(folder)
    cast(Any, adapter).to(torch.float16).save_pretrained(folder / ADAPTER, safe_serialization=True)
