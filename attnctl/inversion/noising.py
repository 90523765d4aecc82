"""A given picture at every noise level of a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnctl.editing.trajectories import NoisedTrajectory
from attnctl.errors import UnsupportedModelError
from attnctl.inversion.hosts import is_packed, on_device, refuse_unsupported, sampler_of
from attnctl.inversion.levels import Ladder
from attnctl.inversion.pictures import encode
from attnctl.settings import check_whole


def noised_trajectory(
    pipe: Any,
    source: Image.Image | Sequence[Image.Image] | Tensor,
    *,
    steps: int = 50,
    seed: int = 0,
) -> NoisedTrajectory:
    """Add noise to a picture as training did, at every level of ``sampler_of(pipe)``.

    It needs no evaluation of the denoiser, and is no inversion: a run that starts from its noise
    does not give the picture back.

    Args:
        pipe: A pipeline; it is left as it was.
        source: RGB pictures of a size that the model takes, or latents ``(items, ...)``.
        steps: Steps of the sampler, from 1.
        seed: Of the noise, one for the whole run.

    Raises:
        UnsupportedModelError: the pipeline has no levels that can be read, or packs its latents.
        SettingError: ``steps`` is no number of steps.
    """
    check_whole("noised_trajectory", "steps", steps, at_least=1)
    refuse_unsupported(pipe, pictures=not isinstance(source, Tensor))
    if is_packed(pipe):
        raise UnsupportedModelError(
            f"{type(pipe).__name__} packs its latents and shifts its noise levels by their number;"
            " use a U-Net, PixArt or Stable Diffusion 3"
        )
    if isinstance(source, Tensor):
        clean = source
    else:
        clean = encode(pipe, [source] if isinstance(source, Image.Image) else list(source))
    clean = on_device(pipe, clean)
    sampler = sampler_of(pipe)
    sampler.set_timesteps(steps, device="cpu")
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(seed)).to(clean)
    return NoisedTrajectory(Ladder.of(sampler), clean, noise, type(sampler).__name__)
