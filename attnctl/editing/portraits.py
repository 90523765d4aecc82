"""Subjects with a portrait each: where they are in it and in the scene, and rows that belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.calls import AttentionCall
from attnctl.editing.boxes import as_box, has_four_numbers
from attnctl.editing.region_masks import as_mask, plain_mask
from attnctl.errors import SettingError
from attnctl.ops.bounded_attention import Box, box_masks
from attnctl.ops.ir_diffusion import (
    dropped,
    isolated_pairs,
    layer_mask,
    moved_tokens,
    portrait_logits,
    without_overlaps,
)
from attnctl.ops.otsu import mask_of_map

Grid = tuple[int, int]
Region = Box | Tensor
"""A box, or a mask: bool ``(H, W)``."""


def read_regions(technique: str, name: str, value: Any) -> tuple[Region, ...]:
    """Read a box or a mask for each subject.

    Args:
        technique: Name for messages.
        name: Name of the setting.
        value: A list (or an array of masks) of boxes ``(x0, y0, x1, y1)`` in parts of the picture,
            and of what `attnctl.editing.region_masks.as_mask` takes.

    Raises:
        SettingError: one of them is neither.
    """
    if not isinstance(value, list | tuple) and getattr(value, "ndim", 0) != 3:
        raise SettingError(
            f"{technique}: {name}= must hold a mask or a box for each portrait, such as "
            "['cat.png', 'dog.png'] or [[0.1, 0.2, 0.5, 0.9], [0.5, 0.2, 0.9, 0.9]], got "
            f"{type(value).__name__}"
        )
    return tuple(_read_region(technique, f"{name}[{at}]", one) for at, one in enumerate(value))


def plain_regions(value: Any) -> list[Any]:
    """Name boxes and masks in reports: numbers, files, or sizes."""
    return [list(one) if has_four_numbers(one) else plain_mask(one) for one in value]


def portrait_rows(call: AttentionCall, portraits: Sequence[int], target: int) -> Tensor:
    """Batch indices of the rows of the scene, and of the portraits' rows beside each.

    A row of the scene belongs to the rows with the same guidance branch, kind and owner, so that
    rows which a technique adds are edited like those that they shadow.

    Args:
        call: An attention call of a picture model.
        portraits: Items of the portraits.
        target: Item of the scene.

    Returns:
        ``(1 + S, r)``, the scene first; ``r`` is 0 where a row is missing.
    """
    places = {(row.branch, row.kind, row.owner, row.item): at for at, row in enumerate(call.rows)}
    found: list[list[int]] = []
    for at, row in enumerate(call.rows):
        beside = [places.get((row.branch, row.kind, row.owner, item)) for item in portraits]
        there = [one for one in beside if one is not None]
        if row.item == target and len(there) == len(portraits):
            found.append([at, *there])
    rows = torch.tensor(found, dtype=torch.long).reshape(-1, 1 + len(portraits))
    return rows.T.to(call.query.device)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the subjects are in a layer.

    Attributes:
        targets: Cells of each subject in the scene, bool ``(S, n)``.
        moved: Tokens of each portrait that are read in the scene, ``(m,)`` each.
        forbidden: Pairs of the scene's tokens that may not see one another, bool ``(n, n)``.
        is_isolated: Whether there are any.
    """

    targets: Tensor
    moved: tuple[Tensor, ...]
    forbidden: Tensor
    is_isolated: bool


class SubjectPlaces:
    """Where the subjects of a run are: as given, or where their words looked in the step before.

    Args:
        portraits: Region of each subject in its portrait.
        scene: Region of each subject in the scene; none as long as there are no maps.
        isolate: Whether subjects may not see each other.
        dropout: Share of a subject's queries that do not see its portrait.
        seed: Of the dropout.
        bias: Added to the logits of the portraits.
    """

    def __init__(
        self,
        portraits: Sequence[Region],
        scene: Sequence[Region],
        *,
        isolate: bool,
        dropout: float,
        seed: int,
        bias: float,
    ) -> None:
        self._portraits, self._scene = tuple(portraits), tuple(scene)
        self._isolate, self._dropout, self._seed, self._bias = isolate, dropout, seed, bias
        self._maps: dict[tuple[int, int], Tensor] = {}
        self._places: dict[Grid, Places] = {}
        self._logits: dict[tuple[Grid, bool], Tensor] = {}
        self._step = -1

    def add_map(self, item: int, subject: int, seen: Tensor) -> None:
        """Add a map ``(h, w)`` of a subject's word in a picture to those of this step."""
        key = (item, subject)
        self._maps[key] = self._maps[key] + seen if key in self._maps else seen

    def use_maps(self, portraits: Sequence[int], target: int) -> None:
        """Make the regions of the maps of a whole step, if there are any, and forget these."""
        if not self._maps:
            return
        self._portraits = tuple(
            mask_of_map(self._maps[item, subject]) for subject, item in enumerate(portraits)
        )
        maps = torch.stack([self._maps[target, subject] for subject in range(len(portraits))])
        self._scene = tuple(without_overlaps(torch.stack([mask_of_map(m) for m in maps]), maps))
        self._maps, self._places, self._logits = {}, {}, {}

    def at(self, grid: Grid, device: torch.device) -> Places | None:
        """Where the subjects are at a resolution; ``None`` as long as that is not known."""
        if not self._scene:
            return None
        if grid not in self._places:
            portraits, scene = (
                torch.stack([_on_grid(one, grid) for one in regions]).to(device)
                for regions in (self._portraits, self._scene)
            )
            targets = scene.flatten(1)
            forbidden = isolated_pairs(targets if self._isolate else targets[:1])
            moved = [moved_tokens(p, t)[0] for p, t in zip(portraits, scene, strict=True)]
            self._places[grid] = Places(targets, tuple(moved), forbidden, bool(forbidden.any()))
        return self._places[grid]

    def logits(self, grid: Grid, step: int, like: Tensor, *, is_read: bool) -> Tensor:
        """Bias on the logits of portraits and scene, kept for a step; `at` was asked before.

        Args:
            grid: Resolution of the layer.
            step: Index of the step, on which the dropout depends.
            like: Queries of the layer, for the dtype.
            is_read: Whether the layer reads the portraits.
        """
        if step != self._step:
            self._logits, self._step = {}, step
        if (grid, is_read) not in self._logits:
            places = self._places[grid]
            seeing = [
                dropped(mask, self._dropout, self._seed, step, *grid, subject)
                for subject, mask in enumerate(places.targets)
            ]
            counts = [len(tokens) if is_read else 0 for tokens in places.moved]
            self._logits[grid, is_read] = portrait_logits(
                places.forbidden, torch.stack(seeing), counts, self._bias, like.dtype
            )
        return self._logits[grid, is_read]


def _on_grid(region: Region, grid: Grid) -> Tensor:
    if isinstance(region, Tensor):
        return layer_mask(region, grid)
    return box_masks([region], *grid)[0].unflatten(0, grid)


def _read_region(technique: str, name: str, value: Any) -> Region:
    if has_four_numbers(value):
        box = as_box(value)
        if box is not None:
            return box
        raise SettingError(
            f"{technique}: {name}={value!r} must be a box (x0, y0, x1, y1) in parts of the picture "
            "from its upper left corner, with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1"
        )
    try:
        return as_mask(technique, name, value)
    except (TypeError, ValueError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(
            f"{technique}: {name}= is no mask: {error}; give a file, a picture or an array "
            "(height, width), or a box (x0, y0, x1, y1)"
        ) from None
