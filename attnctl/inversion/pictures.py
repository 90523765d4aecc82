"""Pictures to latents and back, as a pipeline steps them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnctl.errors import SettingError
from attnctl.inversion.hosts import Size, is_packed


def encode(pipe: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """Encode RGB pictures of one size: the mean of the posterior, never a sample.

    Returns:
        Latents in the form that the pipeline steps, fp32, on its device.

    Raises:
        SettingError: the pictures differ in size, or the model cannot take it.
    """
    sizes = {picture.size for picture in pictures}
    factor = pipe.vae_scale_factor * (2 if is_packed(pipe) else 1)
    if len(sizes) != 1 or any(side % factor for side in next(iter(sizes))):
        raise SettingError(
            f"pictures of sizes {sorted(sizes)} cannot be encoded together by this model; make "
            f"them one size, with sides that are multiples of {factor} pixels"
        )
    pixels = np.stack([np.asarray(picture.convert("RGB"), np.float32) for picture in pictures])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    device = getattr(pipe, "_execution_device", pipe.device)
    with torch.no_grad(), _wide_enough(pipe.vae) as vae:
        posterior = vae.encode(batch.to(device, vae.dtype)).latent_dist
    shift = pipe.vae.config.shift_factor or 0.0
    return packed(pipe, (posterior.mode().float() - shift) * pipe.vae.config.scaling_factor)


def decode(pipe: Any, latents: Tensor, size: Size) -> list[Image.Image]:
    """Decode latents in the form that the pipeline steps; its safety checker looks at them."""
    cells = unpacked(pipe, latents.float(), size)
    shift = pipe.vae.config.shift_factor or 0.0
    with torch.no_grad(), _wide_enough(pipe.vae) as vae:
        scaled = cells / pipe.vae.config.scaling_factor + shift
        batch = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    pixels = (batch.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    if getattr(pipe, "safety_checker", None) is not None:
        pixels, _ = pipe.run_safety_checker(pixels, batch.device, pipe.vae.dtype)
    return [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in pixels]


def packed(pipe: Any, latents: Tensor) -> Tensor:
    """Latents ``(B, C, h, w)`` in the form that the pipeline steps."""
    if not is_packed(pipe) or latents.dim() != 4:
        return latents
    return pipe._pack_latents(latents, *latents.shape)


def unpacked(pipe: Any, latents: Tensor, size: Size) -> Tensor:
    """Latents as ``(B, C, h, w)``."""
    if not is_packed(pipe) or latents.dim() != 3:
        return latents
    width, height = size
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)


@contextmanager
def _wide_enough(vae: Any) -> Generator[Any]:
    """The decoder in fp32 where its half-precision form overflows (SDXL's)."""
    dtype = vae.dtype
    must_widen = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    try:
        yield vae.to(torch.float32) if must_widen else vae
    finally:
        if must_widen:
            vae.to(dtype)
