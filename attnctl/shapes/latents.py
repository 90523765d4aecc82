"""Latents of many scenes, encoded once; and the standardisation of an autoencoder's latents."""

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from attnctl.shapes.world import SceneBatch, WorldSettings, draw_scenes, render

CHUNK = 250


@dataclass(frozen=True)
class LatentCache:
    """Encoded scenes.

    Attributes:
        scenes: ``N`` scenes, for their captions.
        mean: Posterior means ``(N, 4, h, w)``, float16.
        std: Posterior standard deviations, same shape, float16.
    """

    scenes: SceneBatch
    mean: Tensor
    std: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[SceneBatch, Tensor]:
        """Draw scenes with replacement and one latent sample of each, ``(count, 4, h, w)``."""
        rows = torch.randint(len(self.scenes), (count,), generator=generator)
        noise = torch.randn((count, *self.mean.shape[1:]), generator=generator)
        return self.scenes.select(rows), self.mean[rows].float() + self.std[rows].float() * noise


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKL, world: WorldSettings, count: int, generator: torch.Generator
) -> LatentCache:
    """Draw, render and encode scenes.

    Args:
        vae: Autoencoder; its latents should be standardised.
        world: How scenes are drawn.
        count: Number of scenes.
        generator: Source of randomness, on the CPU.
    """
    device = next(vae.parameters()).device
    scenes: list[SceneBatch] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    for start in range(0, count, CHUNK):
        batch = draw_scenes(min(CHUNK, count - start), generator, world)
        pictures = (render(batch) * 2 - 1).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = cast(Any, vae.encode(pictures)).latent_dist
        scenes.append(batch)
        means.append(posterior.mean.half().cpu())
        stds.append(posterior.std.half().cpu())
    return LatentCache(SceneBatch.join(scenes), torch.cat(means), torch.cat(stds))


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, cache: LatentCache) -> None:
    """Give each latent channel zero mean and unit deviation, by folding both into the weights.

    Args:
        vae: Changed in place; its pictures stay the same and its scaling factor becomes 1.
        cache: Scenes encoded by ``vae`` as it was.
    """
    mean = cache.mean.float().mean((0, 2, 3))
    variance = cache.mean.float().var((0, 2, 3)) + cache.std.float().square().mean((0, 2, 3))
    std = variance.sqrt()
    quant: Any = vae.quant_conv
    post: Any = vae.post_quant_conv
    if quant is None or post is None:
        raise ValueError("the autoencoder has no quant_conv; build it with build_vae()")
    channels = len(mean)
    mean, std = mean.to(quant.weight), std.to(quant.weight)
    if not math.isfinite(float(std.sum())):
        raise ValueError("the latents are not finite; train the autoencoder again")
    quant.bias[:channels] -= mean
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] /= std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[..., 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
