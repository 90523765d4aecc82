"""Second stage: the denoiser, together with the open part of the text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from attnctl.shapes.attention import training_attention
from attnctl.shapes.captions import CaptionSettings, write_captions
from attnctl.shapes.latents import LatentCache
from attnctl.shapes.loop import Loop, LoopSettings, Team


@dataclass(frozen=True)
class UnetSettings:
    """Loss and batch of the denoiser.

    Attributes:
        batch: Samples a step and worker.
        caption_drop: Share of samples trained without a caption, for classifier-free guidance.
        signal_cap: Largest weight of a step in units of its signal-to-noise ratio (min-SNR).
        captions: How captions are written.
    """

    batch: int = 16
    caption_drop: float = 0.1
    signal_cap: float = 5.0
    captions: CaptionSettings = field(default_factory=CaptionSettings)


def caption_tokens(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Turn captions into token numbers ``(B, 77)``."""
    return tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids


def drop_some(captions: Sequence[str], share: float, generator: torch.Generator) -> list[str]:
    """Leave a share of the captions empty, for classifier-free guidance."""
    dropped = torch.rand(len(captions), generator=generator) < share
    return ["" if drop else text for text, drop in zip(captions, dropped, strict=True)]


def signal_weights(scheduler: DDIMScheduler, cap: float) -> Tensor:
    """Weight of the squared error at each of the scheduler's steps, ``(steps,)``.

    Source: min-SNR weighting, Hang et al. 2023, for noise prediction: min(snr, cap) / snr.
    """
    kept = scheduler.alphas_cumprod
    ratio = kept / (1 - kept)
    return ratio.clamp(max=cap) / ratio


def unet_loop(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    cache: LatentCache,
    settings: UnetSettings,
    schedule: LoopSettings,
    folder: Path,
    team: Team | None = None,
) -> Loop:
    """Prepare the training of a denoiser; call ``run`` on the result."""
    device = next(unet.parameters()).device
    unet.set_attn_processor(training_attention(device))
    weights = signal_weights(scheduler, settings.signal_cap)
    steps = len(weights)

    def loss(progress: float, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes, latents = cache.draw(settings.batch, generator)
        captions = drop_some(
            write_captions(scenes, generator, settings.captions), settings.caption_drop, generator
        )
        tokens = caption_tokens(tokenizer, captions).to(device)
        noise = torch.randn(latents.shape, generator=generator)
        # One time from each of equal slices: less varied losses than independent times.
        slices = torch.arange(settings.batch) + torch.rand(settings.batch, generator=generator)
        times = (slices * steps / settings.batch).long()
        noisy = scheduler.add_noise(latents, noise, cast(Any, times))
        with torch.autocast(device.type, torch.bfloat16):
            text = text_encoder(tokens).last_hidden_state
            predicted = unet(noisy.to(device), times.to(device), text).sample.float()
        error = (predicted - noise.to(device)).square().mean((1, 2, 3))
        return (error * weights[times].to(device)).mean(), {"plain": float(error.detach().mean())}

    module = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    return Loop(module, loss, schedule, folder, team, seed=23)
