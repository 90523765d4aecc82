"""A picture of unfinished latents without the decoder: one small matrix for each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PATCHES = 24
PATCH_CELLS = 8


@dataclass(frozen=True, slots=True)
class LatentPreview:
    """Colours of latents.

    Attributes:
        matrix: ``(channels + 1, 3)``; the last row is added.
    """

    matrix: Tensor

    @classmethod
    def of(cls, pipe: Any) -> LatentPreview | None:
        """Fit colours to a pipeline's VAE; ``None`` for those that this does not suit.

        Patches of random colours are encoded once; the matrix is the least-squares map from
        latents to the mean colour of the pixels that each stands for.
        """
        from diffusers import AutoencoderKL

        vae = getattr(pipe, "vae", None)
        if not isinstance(vae, AutoencoderKL):
            return None
        factor = int(getattr(pipe, "vae_scale_factor", 8))
        blocks = torch.rand(PATCHES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        side = PATCH_CELLS * factor
        pixels = F.interpolate(blocks, (side, side), mode="nearest") * 2 - 1
        device = getattr(pipe, "_execution_device", vae.device)
        with torch.no_grad():
            encoded: Any = vae.encode(pixels.to(device, vae.dtype))
            latents = encoded.latent_dist.mode()
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scaled = ((latents - shift) * getattr(vae.config, "scaling_factor", 1.0)).float().cpu()
        known = _with_ones(scaled).flatten(0, 2)
        wanted = F.avg_pool2d(pixels, factor).movedim(1, -1).flatten(0, 2)
        return cls(torch.linalg.lstsq(known, wanted).solution)

    def picture(self, latents: Tensor) -> Image.Image | None:
        """Colour the first picture's latents ``(pictures, channels, h, w)``.

        Returns:
            ``w`` by ``h`` pixels; ``None`` for latents of another form.
        """
        if latents.ndim != 4 or latents.shape[1] + 1 != self.matrix.shape[0]:
            return None
        colours = _with_ones(latents[:1].float().cpu())[0] @ self.matrix
        pixels = ((colours.nan_to_num() + 1) * 127.5).clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.numpy())


def _with_ones(latents: Tensor) -> Tensor:
    """Move channels to the end and put a one behind them: ``(n, h, w, channels + 1)``."""
    return F.pad(latents.movedim(1, -1), (0, 1), value=1.0)
