"""Attend-and-Excite: how neglected is each subject, judged by its cross-attention map.

Source: Chefer, Alaluf, Vinker, Wolf, Cohen-Or, "Attend-and-Excite: Attention-Based Semantic
Guidance for Text-to-Image Diffusion Models", SIGGRAPH 2023, arXiv 2301.13826, section 3 and its
official code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 100.0  # factor before the softmax over tokens, as in the official code


def gaussian_kernel(kernel_size: int = 3, sigma: float = 0.5) -> Tensor:
    """Build the smoothing kernel of the official code.

    Its exponent is ``-((x - mu) / (2 sigma))^2``, not the usual ``-(x - mu)^2 / (2 sigma^2)``: it
    is a Gaussian of width ``sqrt(2) sigma``. Kept, so that the numbers agree.

    Args:
        kernel_size: Side in cells; odd, at least 1.
        sigma: Nominal width in cells; positive and finite.

    Returns:
        ``(kernel_size, kernel_size)``, float32, sums to 1.

    Raises:
        ValueError: ``kernel_size`` is even or below 1, or ``sigma`` not positive and finite.

    Source: ``GaussianSmoothing`` of the official code.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size is {kernel_size}; it must be odd and at least 1")
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma is {sigma}; it must be positive and finite")
    offsets = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    line = torch.exp(-((offsets / (2 * sigma)) ** 2))
    square = line[:, None] * line[None, :]
    return (square / square.sum()).to(torch.float32)


def smooth_maps(maps: Tensor, kernel_size: int = 3, sigma: float = 0.5) -> Tensor:
    """Blur each map with `gaussian_kernel`, keeping its size.

    The border is reflected as in the official code. A side that is too short to be reflected
    (not longer than ``kernel_size // 2``) repeats its edge cell instead; a constant map is a fixed
    point either way, a 1 x 1 map too.

    Args:
        maps: ``(..., h, w)``, float.
        kernel_size: Side of the kernel in cells, odd.
        sigma: Width in cells.

    Returns:
        Same shape; float32 for half-precision maps, else their dtype.

    Raises:
        ValueError: See `gaussian_kernel`; or ``maps`` has fewer than two axes.
    """
    if maps.ndim < 2:
        raise ValueError(f"maps must be (..., h, w); got shape {tuple(maps.shape)}")
    wide = _at_least_float32(maps)
    kernel = gaussian_kernel(kernel_size, sigma).to(device=wide.device, dtype=wide.dtype)
    flat = wide.reshape(-1, 1, *wide.shape[-2:])
    reach = kernel_size // 2
    for side, edges in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        mode = "reflect" if flat.shape[side] > reach else "replicate"
        flat = F.pad(flat, edges, mode=mode)
    return F.conv2d(flat, kernel[None, None]).reshape(wide.shape)


def sharpen(
    maps: Tensor,
    *,
    first: int = 1,
    last: int | None = -1,
    renormalise: bool = False,
    sharpness: float = SHARPNESS,
) -> Tensor:
    """Let the kept tokens compete for each pixel: ``softmax(100 * maps)`` over them.

    Args:
        maps: Attention probabilities ``(..., T)``, tokens last.
        first: First kept token column; 1 leaves out BOS.
        last: End of the kept columns as in a slice, None for all the rest. ``1:-1`` is what the
            official code keeps for Stable Diffusion 1; the index of EOS keeps real words alone.
        renormalise: Divide by the mass on the kept columns first. For joint attention, where
            part of each row goes to image keys.
        sharpness: Factor before the softmax, unitless.

    Returns:
        ``(..., kept)``, float32 (float64 stays), sums to 1 over the kept tokens.

    Raises:
        ValueError: No column is kept.

    Source: official code, ``_compute_max_attention_per_index``.
    """
    kept = _at_least_float32(maps[..., first:last])
    if kept.shape[-1] == 0:
        raise ValueError(f"columns {first}:{last} of {maps.shape[-1]} tokens keep none")
    if renormalise:
        mass = kept.sum(dim=-1, keepdim=True)
        kept = kept / mass.clamp_min(torch.finfo(kept.dtype).tiny)
    return (sharpness * kept).softmax(dim=-1)


def subject_losses(
    maps: Tensor,
    subjects: Sequence[Sequence[int]],
    *,
    first: int = 1,
    last: int | Sequence[int | None] | None = -1,
    smoothing: bool = True,
    sigma: float = 0.5,
    kernel_size: int = 3,
    renormalise: bool = False,
) -> list[Tensor]:
    """Measure how far each subject's strongest pixel is from full attention.

    Args:
        maps: Mean attention probabilities over heads and layers, ``(B, h, w, T)``, in [0, 1].
        subjects: For each item the token positions of its subjects, BOS = 0; may be empty and of
            different lengths.
        first: First kept token column, see `sharpen`.
        last: End of the kept columns, for all items or one for each.
        smoothing: Blur the maps before taking the maximum.
        sigma: Width of the blur in cells.
        kernel_size: Side of the blur in cells, odd.
        renormalise: See `sharpen`.

    Returns:
        One tensor ``(n_i,)`` for each item: ``max(0, 1 - max over pixels)``, in [0, 1], float32.

    Raises:
        ValueError: Shapes do not fit, or a subject is not among the kept columns.

    Source: arXiv 2301.13826, algorithm 1 and equation 1.
    """
    if maps.ndim != 4 or len(subjects) != maps.shape[0]:
        raise ValueError(
            f"maps must be (items, h, w, tokens) with one list of subjects for each item; got "
            f"shape {tuple(maps.shape)} and {len(subjects)} lists"
        )
    ends = [last] * len(subjects) if last is None or isinstance(last, int) else list(last)
    if len(ends) != len(subjects):
        raise ValueError(f"last has {len(ends)} entries for {len(subjects)} items")
    losses: list[Tensor] = []
    for item, (positions, end) in enumerate(zip(subjects, ends, strict=True)):
        columns = kept_columns(positions, item, maps.shape[-1], first, end)
        sharp = sharpen(maps[item], first=first, last=end, renormalise=renormalise)
        chosen = sharp[..., columns].permute(2, 0, 1)  # (n, h, w)
        if smoothing and columns:
            chosen = smooth_maps(chosen, kernel_size, sigma)
        losses.append((1 - chosen.flatten(1).amax(dim=1)).clamp_min(0))
    return losses


def neglect_losses(
    maps: Tensor,
    subjects: Sequence[Sequence[int]],
    *,
    first: int = 1,
    last: int | Sequence[int | None] | None = -1,
    smoothing: bool = True,
    sigma: float = 0.5,
    kernel_size: int = 3,
    renormalise: bool = False,
) -> Tensor:
    """Return each item's loss: that of its most neglected subject.

    Only that subject receives gradient. An item without subjects has loss 0 and gradient 0.

    Args:
        maps: Mean attention probabilities over heads and layers, ``(B, h, w, T)``, in [0, 1].
        subjects: For each item the token positions of its subjects, BOS = 0.
        first: First kept token column, see `sharpen`.
        last: End of the kept columns, for all items or one for each.
        smoothing: Blur the maps before taking the maximum.
        sigma: Width of the blur in cells.
        kernel_size: Side of the blur in cells, odd.
        renormalise: See `sharpen`; for joint attention.

    Returns:
        ``(B,)``, in [0, 1], float32 (float64 stays), differentiable. NaN if the maps are.

    Raises:
        ValueError: See `subject_losses`.

    Source: arXiv 2301.13826, equation 1: ``L = max over subjects of (1 - max of the map)``.
    """
    losses = subject_losses(
        maps,
        subjects,
        first=first,
        last=last,
        smoothing=smoothing,
        sigma=sigma,
        kernel_size=kernel_size,
        renormalise=renormalise,
    )
    if not losses:
        return _at_least_float32(maps.new_zeros(0))
    worst = [
        item.amax() if item.numel() else _at_least_float32(maps[index]).sum() * 0
        for index, item in enumerate(losses)
    ]
    return torch.stack(worst)


def step_sizes(
    total: int, scale_factor: float = 20.0, scale_range: tuple[float, float] = (1.0, 0.5)
) -> Tensor:
    """List the size of the gradient step of every denoising step.

    Args:
        total: Number of denoising steps, at least 1.
        scale_factor: Size at ``r = 1``, in latent units per unit of gradient.
        scale_range: ``r`` at the first and the last step; not negative. One step uses the first.

    Returns:
        ``scale_factor * sqrt(r_i)``, ``(total,)``, float64.

    Raises:
        ValueError: ``total`` is below 1 or ``scale_range`` negative.

    Source: official code, ``scale_range = np.linspace(...)`` and ``np.sqrt(scale_range[i])``.
    """
    if total < 1:
        raise ValueError(f"total is {total}; a run has at least 1 step")
    start, end = scale_range
    if not (start >= 0 and end >= 0):
        raise ValueError(f"scale_range is {scale_range}; both ends must be 0 or more")
    return scale_factor * torch.linspace(start, end, total, dtype=torch.float64).sqrt()


def kept_columns(
    positions: Sequence[int], item: int, tokens: int, first: int, last: int | None
) -> list[int]:
    """Give the places of token positions among the kept columns ``first:last``.

    Raises:
        ValueError: A position is not among them.
    """
    kept = range(tokens)[first:last]
    for position in positions:
        if position not in kept:
            allowed = f"{kept[0]} to {kept[-1]}" if kept else "none"
            raise ValueError(
                f"item {item}: subject token {position} is not among the kept token columns "
                f"({allowed} of {tokens}); 0 is BOS, words start at 1"
            )
    return [position - kept[0] for position in positions]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
