"""Temporal attention maps of several blocks: pulled together, and their fast changes amplified.

Source: Bu et al., "ByTheWay" (first named BroadWay), CVPR 2025, arXiv 2410.06241: equation 3
(temporal self-guidance), 4 (energy of a map), 6 and 7 (Fourier motion enhancement).
"""

import torch
from torch import Tensor

Grid = tuple[int, int]


def first_high_bin(frames: int, tau: int | None) -> int:
    """Say where high frequencies begin: at the returned bin ``k``, up to its mirror ``F - k``.

    For even F these are the bins ``F/2 - tau`` to ``F/2 + tau``. For odd F the authors' bins are no
    mirror images of each other; here the mirrors are among them, ``2 tau + 2`` bins in all.

    Args:
        frames: F.
        tau: From 0 to ``F // 2 - 1``; ``None`` is the largest, all bins but the constant part. One
            frame has no high frequencies.

    Raises:
        ValueError: the constant part would be a high frequency.
    """
    most = max(frames // 2 - 1, 0)
    chosen = most if tau is None else tau
    if not 0 <= chosen <= most:
        raise ValueError(
            f"tau={chosen} does not fit a clip of {frames} frames, which allows 0 to {most}; None "
            "takes all frequencies but the constant part"
        )
    return max(frames // 2 - chosen, 1)


def high_frequencies(probs: Tensor, first: int) -> Tensor:
    """Keep the fast changes along the keys: ``(..., F)``, real, rows sum to 0.

    Args:
        probs: ``(..., F)``, of float32 or wider.
        first: First high bin, from 1; see :func:`first_high_bin`.
    """
    spectrum = torch.fft.rfft(probs)
    is_low = torch.arange(spectrum.shape[-1], device=probs.device) < first
    return torch.fft.irfft(spectrum.masked_fill(is_low, 0), n=probs.shape[-1])


def energy(maps: Tensor) -> Tensor:
    """Sum the squares of each row, averaged over the rows of a clip: ``(R,)``.

    Parseval: it is the sum of the energies of the high frequencies and of the rest.

    Args:
        maps: ``(R, P, H, F, F)``: clips or branches, positions, heads, query and key frames.
            Probabilities have an energy from 1/F (uniform) to 1 (each row looks at one frame).
    """
    return maps.square().sum(dim=-1).mean(dim=(1, 2, 3))


def restoring_factor(before: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Factor on the high frequencies that gives a map its former energy back: ``(R,)``, from 0.

    ``sqrt((E1 - E_l) / E_h)``; 0 where the low frequencies have more than the former energy, or
    where the high ones are lost in rounding, as in a uniform map.

    Args:
        before: E1, energy before the map was pulled, ``(R,)``.
        low: E_l, energy of its low frequencies now.
        high: E_h, energy of its high frequencies now.
    """
    floor = torch.finfo(high.dtype).eps * before
    ratio = (before - low).clamp_min(0) / torch.maximum(high, floor)
    return torch.where(high > floor, ratio, torch.zeros_like(ratio)).sqrt()


def amplify(maps: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """Multiply the high frequencies: ``A + (b - 1) A_high``; rows keep their sum.

    The result may have negative entries. The authors divide by the sum of the row afterwards,
    which is 1 whatever the factor, since the constant part is no high frequency.

    Args:
        maps: ``(R, P, H, F, F)``.
        high: Their high frequencies, of the same shape.
        factor: b, ``(R,)``.
    """
    return maps + (factor - 1)[:, None, None, None, None] * high


def onto_grid(maps: Tensor, grid: Grid, finer: Grid) -> Tensor:
    """Give each position of another grid the map of the nearest position: ``(R, h * w, ...)``.

    Args:
        maps: ``(R, P, ...)``, positions row by row.
        grid: Height and width that they lie on, ``P`` in all.
        finer: Height and width wanted.
    """
    if grid == finer:
        return maps
    rows, columns = (
        torch.arange(new, device=maps.device) * old // new
        for old, new in zip(grid, finer, strict=True)
    )
    return maps[:, (rows[:, None] * grid[1] + columns).flatten()]


def with_heads(maps: Tensor, heads: int) -> Tensor:
    """Fit maps to a layer with ``heads`` heads: as they are, or the mean of all heads for each.

    Args:
        maps: ``(R, P, H, F, F)``.
        heads: Heads wanted.

    Returns:
        ``(R, P, heads or 1, F, F)``.
    """
    return maps if maps.shape[2] == heads else maps.mean(dim=2, keepdim=True)
