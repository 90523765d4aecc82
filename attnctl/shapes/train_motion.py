"""``shapes-motion``: a motion adapter on the frozen denoiser of ``shapes``, trained on clips."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    MotionAdapter,
    StableDiffusionPipeline,
    UNetMotionModel,
)
from torch import Tensor, nn

from attnctl.shapes.attention import training_attention
from attnctl.shapes.captions import CaptionSettings, write_captions
from attnctl.shapes.clips import ClipSettings, draw_moving_scenes
from attnctl.shapes.latents import LatentCache
from attnctl.shapes.loop import Loop, LoopSettings, Team
from attnctl.shapes.motion import FRAMES, build_motion_adapter, with_motion
from attnctl.shapes.train_unet import caption_tokens, drop_some, signal_weights
from attnctl.shapes.world import SceneBatch, WorldSettings, render


@dataclass(frozen=True)
class MotionSettings:
    """Loss and batch of the motion adapter.

    Attributes:
        batch: Clips a step and worker.
        caption_drop: Share of clips trained without a caption, for classifier-free guidance.
        signal_cap: Largest weight of a step in units of its signal-to-noise ratio (min-SNR).
        captions: How captions are written; here they do not lie.
        clips: How clips are drawn.
    """

    batch: int = 2
    caption_drop: float = 0.1
    signal_cap: float = 5.0
    captions: CaptionSettings = field(default_factory=lambda: CaptionSettings(extra_share=0.0))
    clips: ClipSettings = field(
        default_factory=lambda: ClipSettings(
            frames=FRAMES, world=WorldSettings(count_weights=(0.5, 0.4, 0.1))
        )
    )


@dataclass(frozen=True)
class ClipCache(LatentCache):
    """Encoded clips: the first scene of each, and latents ``(N, F, 4, h, w)``."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[SceneBatch, Tensor]:
        """Draw clips with replacement, half of them backwards: ``(count, F, 4, h, w)``."""
        scenes, latents = super().draw(count, generator)
        backwards = torch.rand(count, generator=generator) < 0.5
        return scenes, torch.where(backwards.view(-1, 1, 1, 1, 1), latents.flip(1), latents)


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKL, settings: ClipSettings, count: int, generator: torch.Generator
) -> ClipCache:
    """Draw, render and encode clips.

    Args:
        vae: Autoencoder whose latents are standardised.
        settings: How clips are drawn.
        count: Number of clips.
        generator: Source of randomness, on the CPU.
    """
    device = next(vae.parameters()).device
    firsts: list[SceneBatch] = []
    means: list[Tensor] = []
    stds: list[Tensor] = []
    for _ in range(count):
        scenes = draw_moving_scenes(generator, settings)
        with torch.autocast(device.type, torch.bfloat16):
            found = cast(Any, vae.encode((render(scenes) * 2 - 1).to(device))).latent_dist
        firsts.append(scenes.select(torch.zeros(1, dtype=torch.long)))
        means.append(found.mean.half().cpu())
        stds.append(found.std.half().cpu())
    return ClipCache(SceneBatch.join(firsts), torch.stack(means), torch.stack(stds))


def motion_loop(
    base: StableDiffusionPipeline,
    cache: ClipCache,
    settings: MotionSettings,
    schedule: LoopSettings,
    folder: Path,
    team: Team | None = None,
    *,
    is_compiled: bool = False,
) -> Loop:
    """Prepare the training of a motion adapter; call ``run`` on the result.

    Args:
        base: The pipeline of pictures; its weights stay as they are.
        cache: Clips to learn from.
        settings: Loss and batch.
        schedule: How long and how fast.
        folder: For checkpoints and the curve.
        team: The workers that train together.
        is_compiled: Whether the layers are compiled first.
    """
    device = base.unet.device
    unet: Any = with_motion(base.unet, build_motion_adapter(base.unet)).to(device)
    unet.requires_grad_(False)
    unet.set_attn_processor(training_attention(device))
    adapter = motion_modules(unet).requires_grad_(True)
    if is_compiled:
        compile_parts(unet)
    weights = signal_weights(base.scheduler, settings.signal_cap)
    frames = cache.mean.shape[1]

    def loss(progress: float, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        scenes, latents = cache.draw(settings.batch, generator)
        captions = write_captions(scenes, generator, settings.captions)
        captions = drop_some(captions, settings.caption_drop, generator)
        tokens = caption_tokens(base.tokenizer, captions).to(device)
        noise = torch.randn(latents.shape, generator=generator)
        slices = torch.arange(settings.batch) + torch.rand(settings.batch, generator=generator)
        times = (slices * len(weights) / settings.batch).long()
        noisy = base.scheduler.add_noise(latents, noise, times).transpose(1, 2)
        with torch.autocast(device.type, torch.bfloat16):
            text = base.text_encoder(tokens).last_hidden_state.repeat_interleave(frames, dim=0)
            found = unet(noisy.to(device), times.to(device), text).sample.float()
        error = (found.transpose(1, 2) - noise.to(device)).square().mean((1, 2, 3, 4))
        return (error * weights[times].to(device)).mean(), {"plain": float(error.detach().mean())}

    return Loop(adapter, loss, schedule, folder, team, seed=31)


def compile_parts(unet: UNetMotionModel) -> None:
    """Compile the layers one by one, for one size of batch; the first step takes minutes longer.

    The frozen attention between pictures and text stays as it is: compiled, its gradients were NaN.
    """
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = 64  # layers of one class share a counter
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for kind in ("resnets", "motion_modules"):
            for part in getattr(block, kind, ()):
                part.compile(dynamic=False)


def motion_modules(unet: UNetMotionModel) -> nn.ModuleDict:
    """The parts of a denoiser that an adapter brings, by path with ``-`` for the dots."""
    return nn.ModuleDict(
        {
            path.replace(".", "-"): part
            for path, part in unet.named_modules()
            if path.endswith("motion_modules")
        }
    )


def adapter_of(base: StableDiffusionPipeline, state: Mapping[str, Tensor]) -> MotionAdapter:
    """Make the adapter from trained weights, as :func:`motion_modules` names them."""
    adapter = build_motion_adapter(base.unet)
    adapter.load_state_dict({name.replace("-", "."): value for name, value in state.items()})
    return adapter
