"""RealCraft: new words in a source's maps, and self-attention that is free at the object.

Source: Jin, Wang, Pokorny, "RealCraft", arXiv 2312.12635: the cross-attention of changed words is
exchanged, the spatio-temporal attention of the object is relaxed. The paper gives no formulas; the
forms here, and their numbers, are reconstructions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def with_own_columns(
    kept: Tensor, source: Tensor, target: Tensor, value: Tensor, is_new: Tensor
) -> Tensor:
    """Output of a source's map in which new words have the target's columns.

    It is ``C' V`` with ``C' = source + is_new * (target - source)`` in the given columns and the
    source's map elsewhere; rows are not scaled to sum 1 again, as in Prompt-to-Prompt.

    Args:
        kept: Output of the source's whole map, ``(B, H, Q, D)``.
        source: Columns of the source's map, ``(B, H, Q, n)``.
        target: The same columns of the target's own map.
        value: Values of the target at these columns, ``(B, H, n, D)``.
        is_new: 1 where a column is the target's own, ``(B, n)``.
    """
    change = (target - source) * is_new.to(target)[:, None, None]
    return kept + (change @ value.to(change)).to(kept)


def object_cells(source: Tensor, target: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Cells of a frame that belong to the object, before the edit or behind it.

    Args:
        source: Sums of the source's maps of the words, non-negative, ``(B, h, w)``.
        target: Sums of the target's own maps of them, same shape.
        size: Height and width of the wanted cells.
        threshold: Share of a map's maximum in its frame, in [0, 1].

    Returns:
        bool ``(B, H * W)``; a coarser cell belongs to the object if a part of it does. A map
        without any mass has no object.
    """
    masks = [maps > threshold * maps.amax((1, 2), keepdim=True) for maps in (source, target)]
    cells = (masks[0] | masks[1])[:, None].float()
    return F.adaptive_max_pool2d(cells, size).flatten(1) > 0


def relaxed_output(kept: Tensor, free: Tensor, is_object: Tensor) -> Tensor:
    """Output of self-attention: with the source's map outside of the object, the own one inside.

    Args:
        kept: Output of the source's map, ``(B, H, Q, D)``.
        free: Output of the target's own map, same shape.
        is_object: bool ``(B, Q)``.
    """
    return torch.where(is_object[:, None, :, None], free, kept.to(free))
