"""First stage: the autoencoder that turns 64 x 64 pictures into 16 x 16 x 4 latents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from attnctl.shapes.loop import Loop, LoopSettings, Team
from attnctl.shapes.world import WorldSettings, draw_scenes, render


@dataclass(frozen=True)
class VaeSettings:
    """Loss and batch of the autoencoder.

    Attributes:
        batch: Pictures a step and worker.
        crop_until: Share of the schedule that trains on crops of half the size, four times as
            cheap a crop; twice as many of them make a batch.
        square_weight: Weight of the squared error beside the absolute error.
        kl_weight: Weight of the divergence from the standard normal, mean over latent values.
    """

    batch: int = 16
    crop_until: float = 0.5
    square_weight: float = 2.0
    kl_weight: float = 4e-4


def peak_signal_db(pictures: Tensor, rebuilt: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels; both ``(B, 3, H, W)`` in [0, 1]."""
    error = (pictures - rebuilt.clamp(0, 1)).square().mean()
    return float(-10 * torch.log10(error))


def _crops(pictures: Tensor, generator: torch.Generator) -> Tensor:
    half = pictures.shape[-1] // 2
    top, left = (int(v) for v in torch.randint(0, half + 1, (2,), generator=generator))
    return pictures[..., top : top + half, left : left + half]


def vae_loop(
    vae: AutoencoderKL,
    world: WorldSettings,
    settings: VaeSettings,
    schedule: LoopSettings,
    folder: Path,
    team: Team | None = None,
) -> Loop:
    """Prepare the training of an autoencoder; call ``run`` on the result."""
    device = next(vae.parameters()).device

    def loss(progress: float, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        cropped = progress < settings.crop_until
        scenes = draw_scenes(settings.batch * (2 if cropped else 1), generator, world)
        pictures = render(scenes)
        if cropped:
            pictures = _crops(pictures, generator)
        pictures = (pictures * 2 - 1).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = cast(Any, vae.encode(pictures)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            latents = posterior.mean.float() + posterior.std.float() * noise
            rebuilt = cast(Any, vae.decode(latents)).sample.float()
        error = rebuilt - pictures
        square = error.square().mean()
        divergence = 0.5 * (
            posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()
        )
        total = (
            error.abs().mean()
            + settings.square_weight * square
            + settings.kl_weight * divergence.mean()
        )
        numbers = {
            "db": float(-10 * torch.log10(square.detach() / 4)),
            "kl": float(divergence.detach().mean()),
        }
        return total, numbers

    return Loop(vae, loss, schedule, folder, team, seed=11)
