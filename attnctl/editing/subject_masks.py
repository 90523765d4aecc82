"""Where the subjects of a run's pictures are: in their boxes first, then in clusters of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attnctl.calls import RunStart
from attnctl.editing.boxed_subjects import BoxedSubjects
from attnctl.errors import NoSiteError
from attnctl.ops.bounded_attention import (
    box_masks,
    forbidden_image_pairs,
    forbidden_text_pairs,
)
from attnctl.ops.mask_clusters import (
    cluster_features,
    k_means,
    resize_masks,
    share_out,
    with_boxes_of_lost,
    word_evidence,
)
from attnctl.ops.token_bias import bias_of
from attnctl.where import Where

Grid = tuple[int, int]


@dataclass(slots=True)
class _MeanMap:
    """A mean over the calls, layers and steps so far."""

    total: Tensor | None = None
    count: int = 0

    def add(self, value: Tensor) -> None:
        self.total = value if self.total is None else self.total + value
        self.count += 1

    @property
    def mean(self) -> Tensor | None:
        return None if self.total is None else self.total / self.count


class SubjectMasks:
    """Masks of the subjects of one run, and the biases on logits that follow from them.

    Args:
        items: Subjects of each picture.
        grid: Resolution of the maps that are clustered; ``None`` if none are.

    Attributes:
        items: As given.
        grid: As given.
        refined: For each picture bool ``(S, n)`` at ``grid``; ``None`` while the boxes hold.
    """

    def __init__(self, items: Sequence[BoxedSubjects], grid: Grid | None) -> None:
        self.items, self.grid = tuple(items), grid
        self.refined: list[Tensor] | None = None
        self._word_maps = [_MeanMap() for _ in self.items]
        self._image_maps = [_MeanMap() for _ in self.items]
        self._centres: list[Tensor | None] = [None for _ in self.items]
        self._biases: dict[tuple[object, ...], Tensor | None] = {}
        self._strength = 1.0

    def boxes(self, item: int, grid: Grid) -> Tensor:
        """Cells of the boxes of a picture, bool ``(S, h * w)``."""
        return box_masks(self.items[item].boxes, *grid)

    def masks(self, item: int, grid: Grid) -> Tensor:
        """Cells of the subjects of a picture, bool ``(S, h * w)``."""
        if self.refined is None or self.grid is None or not len(self.items[item]):
            return self.boxes(item, grid)
        return resize_masks(self.refined[item], self.grid, grid)

    def add_map(self, kind: str, item: int, probs: Tensor) -> None:
        """Count a map ``(H, n, keys)`` of a picture, its heads averaged, into the means."""
        if kind == "self":
            self._image_maps[item].add(probs.mean(dim=0))
        else:
            leads = list(self.items[item].leads)
            self._word_maps[item].add(probs[..., leads].mean(dim=0))

    @property
    def has_maps(self) -> bool:
        """Whether there is something to cluster."""
        means = (*self._word_maps, *self._image_maps)
        return self.grid is not None and all(map_.count for map_ in means)

    @torch.no_grad()
    def refine(self, clusters: int, word_threshold: float, score_threshold: float) -> None:
        """Make masks from the means of the maps; ``clusters`` is their number for each subject."""
        assert self.grid is not None  # has_maps was asked
        self.refined = [
            self._refined(item, clusters * len(of_item), word_threshold, score_threshold)
            for item, of_item in enumerate(self.items)
        ]
        self._biases.clear()

    def _refined(self, item: int, count: int, word: float, score: float) -> Tensor:
        image, words = self._image_maps[item].mean, self._word_maps[item].mean
        assert self.grid is not None  # looked at before
        assert image is not None  # has_maps was asked
        assert words is not None
        masks, boxes = (made(item, self.grid).to(image.device) for made in (self.masks, self.boxes))
        if not count:
            return masks
        labels, self._centres[item] = k_means(
            cluster_features(image), count, start=self._centres[item]
        )
        shared = share_out(labels, word_evidence(words, masks, word), score)
        return with_boxes_of_lost(shared, boxes)

    def bias(
        self,
        kind: str,
        grid: Grid,
        keys: int,
        like: Tensor,
        *,
        strength: float = 1.0,
        is_background_open: bool = False,
    ) -> Tensor | None:
        """Bias on the logits of each picture, ``(items, 1, n, keys)``, made once and kept.

        ``None`` if nothing is forbidden; dtype and device are those of ``like``.
        """
        if strength != self._strength:
            self._biases.clear()
            self._strength = strength
        key = (kind, grid, keys, like.dtype, like.device, is_background_open)
        if key not in self._biases:
            pairs = [
                self._forbidden(kind, item, grid, keys, like.device, is_background_open)
                for item in range(len(self.items))
            ]
            forbidden = torch.stack(pairs)[:, None]
            self._biases[key] = (
                bias_of(forbidden, strength, like.dtype) if bool(forbidden.any()) else None
            )
        return self._biases[key]

    def _forbidden(
        self, kind: str, item: int, grid: Grid, keys: int, device: torch.device, is_open: bool
    ) -> Tensor:
        masks, subjects = self.masks(item, grid).to(device), self.items[item]
        if kind == "self":
            return forbidden_image_pairs(masks)
        if not len(subjects):
            return torch.zeros(masks.shape[1], keys, dtype=torch.bool, device=device)
        return forbidden_text_pairs(
            masks,
            subjects.positions,
            keys,
            filtered=subjects.filtered,
            eos=subjects.eos,
            is_background_open=is_open,
        )


def clustered_grid(
    technique: str, where: Where, run: RunStart, *, is_clustered: bool
) -> Grid | None:
    """Choose the resolution of the maps that are clustered: the finest that has both kinds.

    Args:
        technique: Name for messages.
        where: Layers whose maps are read.
        run: The run that begins.
        is_clustered: Whether maps are clustered at all; if not, the answer is ``None``.

    Raises:
        NoSiteError: none of the layers can be used.
    """
    grids: dict[str, set[Grid]] = {"self": set(), "cross": set()}
    for site in run.sites:
        layout = run.layouts[site.path]
        if layout is not None and where.allows_grid(site, *layout.size):
            grids[site.kind].add(layout.size)
    shared = grids["self"] & grids["cross"]
    if is_clustered and shared:
        return max(shared)
    if not is_clustered and (grids["self"] or grids["cross"]):
        return None
    found = (", ".join(f"{h}x{w}" for h, w in sorted(one)) or "no site" for one in grids.values())
    raise NoSiteError(
        f"{technique}: loss_where={str(where)!r} has self-attention at {next(found)} and "
        f"cross-attention at {next(found)}; clusters need both at one resolution, the loss alone "
        "(clusters=0) needs one of them"
    )
