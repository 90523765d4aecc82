"""Masks of subjects from a run's own attention maps: clusters of image tokens, shared out.

Source: Dahary, Patashnik, Aberman, Cohen-Or, "Be Yourself: Bounded Attention for Multi-Subject
Text-to-Image Generation", ECCV 2024, arXiv 2403.16990, mask refinement, and its official code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 10.0  # of the sigmoid over word maps, as in the official code
RESTARTS = 100  # of the first clustering of a run, as in the official code
ROUNDS = 100


def cluster_features(self_map: Tensor) -> Tensor:
    """Describe each image token by how the others see it: columns scaled to a maximum of 1.

    Args:
        self_map: Mean self-attention, ``(n, n)``.

    Returns:
        ``(n, n)``; a row describes a token.
    """
    return self_map / (self_map.amax(dim=0) + 1e-5)


def k_means(
    samples: Tensor, count: int, *, start: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Cluster samples around ``count`` centres; equal inputs give equal clusters.

    Args:
        samples: ``(n, f)``.
        count: Clusters; no more than there are samples.
        start: Centres to start from, ``(k, f)``. By default the best of `RESTARTS` starts, each
            of them drawn by k-means++.
        seed: Of these draws; no other generator is touched.

    Returns:
        Cluster of each sample ``(n,)`` and the centres ``(k, f)``. A cluster may be empty.

    Source: Lloyd 1982; Arthur and Vassilvitskii 2007.
    """
    wide = samples.float()
    centres = _draw_centres(wide, min(count, len(wide)), seed) if start is None else start[None]
    distances = _distances(wide, centres)
    labels = distances.argmin(dim=-1)
    for _ in range(ROUNDS):
        centres = _means(wide, labels, centres)
        distances = _distances(wide, centres)
        before, labels = labels, distances.argmin(dim=-1)
        if torch.equal(before, labels):
            break
    best = int(distances.amin(dim=-1).sum(dim=-1).argmin())
    return labels[best], centres[best]


def word_evidence(word_maps: Tensor, masks: Tensor, threshold: float) -> Tensor:
    """Say how strongly each image token looks at each subject, inside the subject's mask.

    Args:
        word_maps: Mean attention to one word of each subject, ``(n, S)``.
        masks: Cells where the subjects were so far, bool ``(S, n)``.
        threshold: Share of a map's maximum that counts as half.

    Returns:
        ``(S, n)``, in [0, 1].
    """
    tiny = torch.finfo(word_maps.dtype).tiny
    shares = word_maps / word_maps.amax(dim=0).clamp_min(tiny)
    sharp = torch.sigmoid(SHARPNESS * (shares - threshold)).T
    low, high = sharp.amin(dim=1, keepdim=True), sharp.amax(dim=1, keepdim=True)
    return (sharp - low) / (high - low).clamp_min(tiny) * masks


def share_out(labels: Tensor, evidence: Tensor, threshold: float) -> Tensor:
    """Give each cluster to the subject with the most evidence in it, or to the background.

    Args:
        labels: Cluster of each image token, ``(n,)``.
        evidence: ``(S, n)``, see `word_evidence`.
        threshold: Least score of a subject's cluster; a score is the evidence in the cluster over
            all the subject's evidence or the cluster's size, whichever is less.

    Returns:
        Cells of each subject, bool ``(S, n)``; disjoint.
    """
    members = F.one_hot(labels).T.to(evidence.dtype)  # (k, n)
    most = torch.minimum(evidence.sum(dim=1)[None, :], members.sum(dim=1)[:, None])
    scores = (members @ evidence.T) / most.clamp_min(torch.finfo(evidence.dtype).tiny)
    best, owner = scores.max(dim=1)
    owner = torch.where(best >= threshold, owner, -1)[labels]  # (n,)
    return owner[None, :] == torch.arange(len(evidence), device=owner.device)[:, None]


def with_boxes_of_lost(masks: Tensor, boxes: Tensor) -> Tensor:
    """Give a subject without any cell its box back, and take that box from the others.

    A subject that has nothing left then gets its own box back in turn.

    Args:
        masks: Cells of each subject, bool ``(S, n)``.
        boxes: Cells of its box, bool ``(S, n)``, none of them empty.

    Returns:
        bool ``(S, n)``; no subject is without a cell.
    """
    lost = ~masks.any(dim=1)
    while True:
        taken = (boxes & lost[:, None]).any(dim=0)
        kept = torch.where(lost[:, None], boxes, masks & ~taken)
        still_lost = lost | ~kept.any(dim=1)
        if torch.equal(still_lost, lost):
            return kept
        lost = still_lost


def resize_masks(masks: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Take the nearest cells of masks at another resolution.

    Args:
        masks: bool ``(S, h * w)``.
        grid: ``(h, w)``.
        size: Height and width of the result in cells.

    Returns:
        bool ``(S, height * width)``.
    """
    maps = masks.unflatten(1, grid)[None].float()
    return F.interpolate(maps, size=size, mode="nearest-exact")[0].flatten(1) > 0.5


def _draw_centres(samples: Tensor, count: int, seed: int) -> Tensor:
    """Starts of k-means++, ``(RESTARTS, count, f)``: far samples are drawn more often."""
    draws = torch.rand(RESTARTS, count, generator=torch.Generator().manual_seed(seed))
    draws = draws.to(samples.device)
    between = _distances(samples, samples[None])[0].fill_diagonal_(0.0)
    last = len(samples) - 1
    chosen = [(draws[:, 0] * len(samples)).long().clamp_max(last)]
    nearest = between[chosen[0]]  # (RESTARTS, n)
    for place in range(1, count):
        sums = nearest.cumsum(dim=1)
        drawn = draws[:, place, None] * sums[:, -1:]
        chosen.append(torch.searchsorted(sums, drawn, right=True)[:, 0].clamp_max(last))
        nearest = torch.minimum(nearest, between[chosen[-1]])
    return samples[torch.stack(chosen, dim=1)]


def _distances(samples: Tensor, centres: Tensor) -> Tensor:
    """Squared distances ``(R, n, k)`` of ``(n, f)`` and ``(R, k, f)``."""
    products = samples @ centres.transpose(1, 2)
    squares = samples.square().sum(-1)[:, None] + centres.square().sum(-1)[:, None, :]
    return (squares - 2 * products).clamp_min(0.0)


def _means(samples: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Mean of each cluster's samples, ``(R, k, f)``; an empty one keeps its centre."""
    members = F.one_hot(labels, centres.shape[1]).transpose(1, 2).to(samples.dtype)
    sizes = members.sum(dim=-1, keepdim=True)
    return torch.where(sizes > 0, (members @ samples) / sizes.clamp_min(1.0), centres)
