"""Rows of a source picture beside the rows of the pictures that are edited after it.

Source and targets are items of the user's own batch. A row of a target has its partner in the row
of the source with the same guidance branch, kind and owner, so that rows which a technique adds
are edited like those that they shadow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnctl.calls import AttentionCall
from attnctl.chosen_heads import on_heads
from attnctl.editing.items import item_number, item_numbers
from attnctl.errors import SettingError

Pair = tuple[Tensor, Tensor]


def edited_items(technique: str, source: Any, target: Any) -> tuple[int, ...]:
    """Check the settings ``source`` (an item) and ``target`` (an item, or several).

    Returns:
        The items that are edited.

    Raises:
        SettingError: one is no item, or the source is among the targets.
    """
    item_number(technique, "source", source)
    targets = item_numbers(technique, "target", target)
    if source in targets:
        raise SettingError(
            f"{technique}: source={source!r} and target={target!r} must be different pictures of "
            "the batch, such as source=0, target=1"
        )
    return targets


def paired_rows(
    call: AttentionCall, source: int, targets: Sequence[int], branch: str | None = None
) -> list[Pair]:
    """Batch indices ``(fold,)`` of each target row and of its source row, as (source, target).

    Args:
        call: An attention call that holds both.
        source: Item of the source.
        targets: Items that are edited.
        branch: One guidance branch; ``None`` means each with its own.
    """
    fold, device = call.fold, call.query.device
    place = {(r.branch, r.kind, r.owner, r.item): at for at, r in enumerate(call.rows)}
    frames = torch.arange(fold, device=device)
    pairs: list[Pair] = []
    for at, row in enumerate(call.rows):
        partner = place.get((row.branch, row.kind, row.owner, source))
        if row.item in targets and partner is not None and branch in (None, row.branch):
            pairs.append((partner * fold + frames, at * fold + frames))
    return pairs


def joined_pairs(pairs: Sequence[Pair]) -> Pair:
    """Source and target indices of all pairs, one after the other."""
    return torch.cat([s for s, _ in pairs]), torch.cat([t for _, t in pairs])


def with_target_output(
    out: Tensor, at: Tensor, edited: Tensor, strength: float, heads: Sequence[int] | None
) -> Tensor:
    """Give rows ``at`` of an attention output another one; the other rows stay as they are.

    Args:
        out: ``(B, H, Q, D)``.
        at: Batch indices.
        edited: ``(at, H, Q, D)``.
        strength: 1 replaces, a smaller one mixes.
        heads: Heads that change; ``None`` means all.
    """
    new = edited.to(out)
    if strength != 1.0:
        new = out[at] + strength * (new - out[at])
    if heads is not None:
        new = on_heads(new, out[at], heads, out.shape[1])
    return out.index_copy(0, at, new)
