"""DiTFlow: the motion of a clip, read from the attention between its frames.

Source: Pondaven, Siarohin, Tulyakov, Torr, Pizzati, "Video Motion Transfer with Diffusion
Transformers", CVPR 2025, arXiv 2412.07776, section 3 and its official code.
"""

import torch
from torch import Tensor

Grid = tuple[int, int, int]  # frames, rows, columns

TEMPERATURE = 2.0  # factor on the logits of the soft flow, ``motion_temp`` of the official code


def mean_logits(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Average the attention logits of all heads, without a map for each of them.

    The mean of ``q_h k_h^T`` over heads is one product over all channels, divided by their number.

    Args:
        query: ``(H, N, D)``.
        key: ``(H, K, D)``.
        scale: Of the logits, usually ``1 / sqrt(D)``.

    Returns:
        ``(N, K)``, fp32 (fp64 stays), differentiable.
    """
    wide_query, wide_key = (_wide(x).transpose(0, 1).flatten(1) for x in (query, key))
    return wide_query @ wide_key.mT * (scale / len(query))


def soft_motion_flow(
    query: Tensor, key: Tensor, grid: Grid, scale: float, temperature: float = TEMPERATURE
) -> Tensor:
    """Tell where each cell looks in each frame: the mean way to what it attends to there.

    Each pair of frames has a softmax of its own.

    Args:
        query: Of the image tokens, ``(H, F * n, D)``, frames slowest.
        key: The same shape.
        grid: Frames, rows and columns, with ``n`` rows times columns.
        scale: Of the logits.
        temperature: Factor on the logits, from 0; a large one gives :func:`hard_motion_flow`.

    Returns:
        ``(F, F, n, 2)``: from the cells of frame ``a`` to frame ``b``, columns then rows, in cells;
        fp32 (fp64 stays), differentiable.

    Source: arXiv 2412.07776, section 3.2.
    """
    logits = mean_logits(query, key, scale).unflatten(1, (grid[0], -1))  # (F * n, F, n)
    probs = (temperature * logits).softmax(dim=-1)
    return _ways_to(probs @ _places(grid, probs), grid)


@torch.no_grad()
def hard_motion_flow(query: Tensor, key: Tensor, grid: Grid) -> Tensor:
    """Tell which cell of each frame each cell looks at most: the flow of a reference clip.

    Args:
        query: Of the image tokens, ``(H, F * n, D)``, frames slowest.
        key: The same shape.
        grid: Frames, rows and columns, with ``n`` rows times columns.

    Returns:
        ``(F, F, n, 2)``: from the cells of frame ``a`` to frame ``b``, columns then rows, in whole
        cells; fp32 (fp64 stays).
    """
    logits = mean_logits(query, key, 1.0).unflatten(1, (grid[0], -1))
    return _ways_to(_places(grid, logits)[logits.argmax(dim=-1)], grid)


def motion_loss(reference: Tensor, flow: Tensor) -> Tensor:
    """Measure how far a flow is from the reference, where that one moves at all.

    Args:
        reference: ``(F, F, n, 2)``.
        flow: The same shape.

    Returns:
        Mean squared difference over the cells and pairs of frames whose reference is not zero, in
        squared cells; 0 if there are none.
    """
    moves = reference.ne(0).any(dim=-1, keepdim=True)
    squares = (flow - reference).square() * moves
    return squares.sum() / (2 * moves.sum()).clamp_min(1)


def learning_rate(place: int, count: int, rates: tuple[float, float]) -> float:
    """Give the learning rate of one of ``count`` guided steps.

    Args:
        place: Number of the step, from 0.
        count: Number of the guided steps.
        rates: At the first of them, and behind the last one.

    Source: official code: 11 points from 0.002 to 0.001 for 10 steps.
    """
    return rates[0] + (rates[1] - rates[0]) * place / count


def _places(grid: Grid, like: Tensor) -> Tensor:
    """Column and row of each cell, ``(n, 2)``."""
    rows, columns = (torch.arange(side, device=like.device) for side in grid[1:])
    across = columns.repeat(len(rows))
    return torch.stack([across, rows.repeat_interleave(len(columns))], dim=-1).to(like.dtype)


def _ways_to(targets: Tensor, grid: Grid) -> Tensor:
    """From each cell to its target in each frame: ``(F * n, F, 2)`` to ``(F, F, n, 2)``."""
    by_frame = targets.unflatten(0, (grid[0], -1)).transpose(1, 2)
    return by_frame - _places(grid, targets)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
