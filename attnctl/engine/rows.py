"""Which rows of the denoiser's batch are which, and how to take or add some of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attnctl.calls import AddedRow, Row, Rows
from attnctl.errors import BranchError
from attnctl.families import Family


def rows_of_call(branches: Sequence[str], items: int, is_weaker: bool = False) -> Rows:
    """Rows of a batch that holds ``branches`` one after the other, each with all items."""
    kind = "weaker" if is_weaker else "main"
    return tuple(Row(branch, item, kind) for branch in branches for item in range(items))


def family_branches(family: Family, pipe: Any) -> tuple[str, ...]:
    """Order of the guidance branches of this pipeline in one batch."""
    return family.pipeline_branches.get(type(pipe).__name__, family.branches)


def branches_of_known_items(
    family: Family, pipe: Any, chosen: Sequence[str] | None, rows: int, items: int, call: int
) -> tuple[str, ...]:
    """Branches of a call with ``rows`` rows, now that the run's number of items is known.

    Raises:
        BranchError: the rows are no whole number of known branches.
    """
    order = family_branches(family, pipe) if chosen is None else tuple(chosen)
    count, rest = divmod(rows, items)
    if not rest and count == len(order) > 1:
        return order
    if not rest and count == 1:
        return ("uncond",) if family.separate and call == 1 else ("cond",)
    raise BranchError(
        f"the denoiser was given {rows} rows for {items} items, which is none of: one branch, or "
        f"{len(order)} branches {order}; name the branches in their order with "
        "attach(..., branches=(...))"
    )


def whole_items(rows: int, branches: Sequence[str]) -> int:
    """Number of items of a batch that holds each of ``branches`` once.

    Raises:
        BranchError: the rows are no whole number of branches.
    """
    items, rest = divmod(rows, len(branches))
    if rest or not items:
        raise BranchError(
            f"the denoiser was given {rows} rows, which cannot hold the {len(branches)} branches "
            f"{tuple(branches)}; name those that it is given with attach(..., branches=(...))"
        )
    return items


def guess_branches(
    family: Family, pipe: Any, chosen: Sequence[str] | None, latents: Any, text: Any, call: int
) -> tuple[str, ...]:
    """Branches of the first call of a run, before the scheduler has shown the number of items.

    The first hit decides: what the user said; one call a branch by family; what the pipeline
    says of its guidance; equal latents beside different texts. Verified after the first step.
    """
    if chosen is not None:
        return tuple(chosen)
    one = ("uncond",) if family.separate and call == 1 else ("cond",)
    if family.separate or pipe is None:
        return one
    guided = _says_guided(pipe)
    order = family_branches(family, pipe)
    if guided is None:
        guided = _looks_guided(latents, text, len(order))
    return order if guided and len(latents) % len(order) == 0 else one


def _says_guided(pipe: Any) -> bool | None:
    try:
        return bool(pipe.do_classifier_free_guidance)
    except AttributeError:
        pass
    scale = getattr(pipe, "_guidance_scale", None)
    return None if scale is None else bool(scale > 1)


def _looks_guided(latents: Any, text: Any, branches: int) -> bool:
    """Equal latents in each part and different texts: guidance that the pipeline keeps local."""
    if not isinstance(latents, Tensor) or latents.shape[0] % branches:
        return False
    if not isinstance(text, Tensor) or text.shape[0] % branches:
        return False
    parts, texts = latents.chunk(branches), text.chunk(branches)
    return torch.equal(parts[0], parts[-1]) and not torch.equal(texts[0], texts[-1])


class RowList(list[Any]):
    """A denoiser's argument that is a list with an entry a row."""


def as_batch(value: Any) -> Any:
    """A list with an entry a row as one tensor if all entries are alike, else as a `RowList`."""
    if not isinstance(value, list):
        return value
    shapes = {entry.shape if isinstance(entry, Tensor) else None for entry in value}
    if len(shapes) == 1 and None not in shapes:
        return torch.stack(value)
    return RowList(value)


def take_rows(
    arguments: Mapping[str, Any], batched: frozenset[str], rows: int, chosen: Sequence[int]
) -> dict[str, Any]:
    """Keep the rows ``chosen`` of every argument whose axis 0 is rows, or rows times frames."""
    return {
        name: select_rows(value, rows, chosen) if name in batched else value
        for name, value in arguments.items()
    }


def append_rows(
    arguments: Mapping[str, Any],
    batched: frozenset[str],
    rows: Rows,
    added: Sequence[AddedRow],
) -> tuple[dict[str, Any], Rows]:
    """Add, for each added row, a copy of the rows that it shadows, with its own arguments."""
    result, roles = dict(arguments), list(rows)
    for extra in added:
        shadowed = extra.shadowed(rows)
        if not shadowed:
            continue
        copies = take_rows(arguments, batched, len(rows), shadowed)
        copies.update(extra.arguments or {})
        for name in batched & result.keys():
            result[name] = _join(result[name], copies[name], len(roles))
        roles += [
            Row(extra.shadows, rows[i].item, extra.kind, extra.owner, extra.other_picture)
            for i in shadowed
        ]
    return result, tuple(roles)


def select_rows(value: Any, rows: int, chosen: Sequence[int]) -> Any:
    """Keep the rows ``chosen`` of every tensor in a value whose axis 0 is rows (times frames)."""
    if isinstance(value, RowList):
        return RowList(value[row] for row in chosen)
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] % rows or (value.shape[0] == 1 and rows > 1):
            return value
        index = torch.as_tensor(chosen, device=value.device)
        if value.shape[0] == rows:
            return value[index]
        return value.unflatten(0, (rows, -1))[index].flatten(0, 1)
    if isinstance(value, Mapping):
        return {k: select_rows(v, rows, chosen) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(select_rows(v, rows, chosen) for v in value)
    return value


def _join(first: Any, second: Any, rows: int) -> Any:
    if isinstance(first, RowList):
        return RowList([*first, *second])
    if isinstance(first, Tensor):
        has_rows = (
            first.dim() > 0 and first.shape[0] % rows == 0 and not (first.shape[0] == 1 < rows)
        )
        return torch.cat([first, second.to(first)]) if has_rows else first
    if isinstance(first, Mapping):
        return {k: _join(v, second[k], rows) for k, v in first.items()}
    if isinstance(first, list | tuple):
        return type(first)(_join(a, b, rows) for a, b in zip(first, second, strict=True))
    return first
