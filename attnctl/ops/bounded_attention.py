"""Bounded Attention: who may see whom, and how much attention lies inside the boxes.

Source: Dahary, Patashnik, Aberman, Cohen-Or, "Be Yourself: Bounded Attention for Multi-Subject
Text-to-Image Generation", ECCV 2024, arXiv 2403.16990, and its official code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a box, in parts of the picture's sides."""


def box_masks(boxes: Sequence[Box], height: int, width: int) -> Tensor:
    """Mark the cells of each box.

    Args:
        boxes: ``(x0, y0, x1, y1)`` each, in [0, 1].
        height: Height of the grid in cells.
        width: Width of the grid in cells.

    Returns:
        bool ``(S, height * width)``, row by row. Sides are rounded to cells, halves to the even
        one; a box that would vanish keeps one cell.

    Source: rows ``round(y0 h) : round(y1 h)``, columns likewise; official code.
    """
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        rows, columns = _cells(y0, y1, height), _cells(x0, x1, width)
        mask[rows, columns] = True
    return masks.flatten(1)


def forbidden_image_pairs(masks: Tensor) -> Tensor:
    """Mark the pairs of image tokens that may not see one another.

    A token of a subject sees the background and the subjects that it belongs to; a background
    token sees everything.

    Args:
        masks: Cells of each subject, bool ``(S, n)``; they may overlap.

    Returns:
        bool ``(n, n)``, queries first.

    Source: arXiv 2403.16990, bounded self-attention.
    """
    members = masks.float()
    shared = members.T @ members > 0
    foreground = masks.any(dim=0)
    return foreground[:, None] & foreground[None, :] & ~shared


def forbidden_text_pairs(
    masks: Tensor,
    subjects: Sequence[Sequence[int]],
    tokens: int,
    *,
    filtered: Sequence[int] = (),
    eos: int | None = None,
    is_background_open: bool = False,
) -> Tensor:
    """Mark the pairs of image and text tokens that may not see one another.

    Image tokens of a subject see the subject's own words and all words that nobody claims;
    filtered words are seen by none, except where a subject claims them.

    Args:
        masks: Cells of each subject, bool ``(S, n)``.
        subjects: Token positions of each subject; one may belong to several.
        tokens: Text tokens.
        filtered: Positions of words that none may see.
        eos: Position of the end token, which the background does not see; ``None``: it does.
        is_background_open: Let the background see the subjects' words and the end token, so that
            a loss has something to push down there.

    Returns:
        bool ``(n, tokens)``.

    Source: arXiv 2403.16990, bounded cross-attention; the end token is in the official code.
    """
    background = ~masks.any(dim=0)
    forbidden = torch.zeros(masks.shape[1], tokens, dtype=torch.bool, device=masks.device)
    for positions in (filtered, *subjects):
        forbidden[:, list(positions)] = True
    for mask, positions in zip(masks, subjects, strict=True):
        rows = mask | background if is_background_open else mask
        for position in positions:
            forbidden[:, position] &= ~rows
    if eos is not None and not is_background_open:
        forbidden[:, eos] |= background
    return forbidden


def box_sums(masses: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Sum each subject's attention inside its box and in the background.

    Args:
        masses: Probability of the subject's keys, ``(H, n, S)``.
        masks: Cells of each box, bool ``(S, n)``.

    Returns:
        Sums over heads and cells, inside and in the background, ``(S,)`` each.

    Source: arXiv 2403.16990, guidance loss; official code.
    """
    of_cells = masses.sum(dim=0).T  # (S, n)
    inside = (of_cells * masks).sum(dim=1)
    return inside, (of_cells * ~masks.any(dim=0)).sum(dim=1)


def box_losses(inside: Tensor, outside: Tensor) -> Tensor:
    """Measure how much of each subject's attention lies in the background.

    Args:
        inside: Attention inside each box, ``(S,)``, mean over layers.
        outside: Attention in the background, ``(S,)``.

    Returns:
        ``(1 - inside / (inside + S outside))^2``, ``(S,)``, in [0, 1].

    Source: arXiv 2403.16990, guidance loss.
    """
    whole = inside + len(inside) * outside
    return (1 - inside / whole.clamp_min(torch.finfo(whole.dtype).tiny)) ** 2


def step_size(index: int, steps: int, first: float, last: float) -> float:
    """Size of the gradient step at step ``index`` of ``steps``; ``last`` is never quite reached.

    Source: ``first + (last - first) index / steps``, official code.
    """
    return first + (last - first) * index / steps


def _cells(start: float, stop: float, cells: int) -> slice:
    first = min(round(start * cells), cells - 1)
    return slice(first, max(round(stop * cells), first + 1))
