"""Decoders, schedulers' settings and pictures that the tiny pipelines share."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

PIXELS = 32  # latents of 16 by 16: the decoder doubles


def decoder(channels: int = 4, shift: float | None = None) -> AutoencoderKL:
    """Latents to pictures of twice the size."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=channels,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    )


def ddim() -> DDIMScheduler:
    """The scheduler of Stable Diffusion 1.x, without clipping."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def flow() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow, Euler steps."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def picture(seed: int = 0) -> Image.Image:
    """A random RGB picture of ``PIXELS`` by ``PIXELS``."""
    values = np.random.default_rng(seed).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    return Image.fromarray(values)


def half_mask() -> Image.Image:
    """A mask that is white, to be painted, on the right half."""
    values = np.zeros((PIXELS, PIXELS), dtype=np.uint8)
    values[:, PIXELS // 2 :] = 255
    return Image.fromarray(values)


def edges(seed: int = 0) -> Tensor:
    """A control picture ``(1, 3, 32, 32)`` in [0, 1]."""
    return torch.rand(1, 3, PIXELS, PIXELS, generator=seeded(seed))


def seeded(seed: int) -> torch.Generator:
    """Make a CPU generator."""
    return torch.Generator("cpu").manual_seed(seed)
