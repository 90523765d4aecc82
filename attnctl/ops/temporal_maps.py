"""Edits of temporal attention maps: which frames look at which.

Source: Li et al., "VSTAR", ICLR 2025, arXiv 2403.13501, section 3.2 (temporal attention
regularisation) and 3.1 (video synopsis prompting).
"""

import torch
from torch import Tensor

PEAKS = ("signed", "clamped", "absolute")


def gaussian_band(frames: int, sigma: float, like: Tensor) -> Tensor:
    """Make the band ``exp(-(i - j)^2 / (2 sigma^2))``: ``(F, F)``, symmetric Toeplitz, diagonal 1.

    Args:
        frames: F.
        sigma: Width in frames, above 0; infinity gives ones.
        like: Tensor whose dtype and device the band has.
    """
    places = torch.arange(frames, dtype=like.dtype, device=like.device)
    return torch.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)


def add_band(scores: Tensor, peak: Tensor, band: Tensor, scale: float) -> Tensor:
    """Lift the logits of near frames: ``S + scale * m_i * D_ij``.

    Args:
        scores: ``(..., F, F)``, scaled logits.
        peak: ``(..., F, 1)``, the largest logit of each row; see :func:`row_peaks`.
        band: ``(F, F)``, from :func:`gaussian_band`.
        scale: Height of the band in units of the peak.
    """
    return scores + scale * peak * band


def row_peaks(scores: Tensor, form: str) -> Tensor:
    """Take the largest logit of each row: ``(..., F, 1)``.

    Args:
        scores: ``(..., F, F)``.
        form: What a negative peak becomes. ``signed`` keeps it, as the authors do: the band is
            then subtracted. ``clamped`` makes it 0, ``absolute`` drops its sign.
    """
    peak = scores.amax(dim=-1, keepdim=True)
    if form == "clamped":
        return peak.clamp_min(0)
    return peak.abs() if form == "absolute" else peak


def blend_stages(stages: Tensor, frames: int, *, blend: bool = True) -> Tensor:
    """Give each frame an embedding of its own, between those of the stages around it.

    Stage ``k`` stands at frame ``floor(k (F - 1) / (K - 1))`` and holds exactly there.

    Args:
        stages: ``(K, T, D)``, one embedding for each stage in order.
        frames: F.
        blend: Interpolate linearly; False holds each stage until the next one.

    Returns:
        ``(F, T, D)``.
    """
    count = len(stages)
    if count == 1 or frames == 1:
        return stages[:1].expand(frames, *stages.shape[1:])
    keys = [k * (frames - 1) // (count - 1) for k in range(count)]
    made: list[Tensor] = []
    for frame in range(frames):
        k = max(i for i, key in enumerate(keys) if key <= frame)
        if k == count - 1 or not blend:
            made.append(stages[k])
            continue
        share = (frame - keys[k]) / (keys[k + 1] - keys[k])
        made.append(torch.lerp(stages[k], stages[k + 1], share))
    return torch.stack(made)
