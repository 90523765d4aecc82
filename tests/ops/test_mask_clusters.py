"""Clusters of self-attention maps and how they are shared out among subjects."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from attnctl.ops.bounded_attention import box_masks
from attnctl.ops.mask_clusters import (
    cluster_features,
    k_means,
    resize_masks,
    share_out,
    with_boxes_of_lost,
    word_evidence,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def block_map(sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Self-attention of groups that see themselves alone, with a little noise; their labels."""
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=seeded(3))]
    same = (labels[:, None] == labels[None, :]).float()
    noisy = same + 0.05 * torch.rand(same.shape, generator=seeded(4))
    return noisy / noisy.sum(dim=1, keepdim=True), labels


@pytest.mark.parametrize("sizes", [[20, 30, 14], [5, 40, 10, 9]])
def test_blocks_of_a_self_map_are_recovered(sizes: list[int]) -> None:
    self_map, expected = block_map(sizes)
    labels, centres = k_means(cluster_features(self_map), len(sizes))
    assert centres.shape == (len(sizes), len(expected))
    assert torch.equal(labels[:, None] == labels[None, :], expected[:, None] == expected[None, :])


def test_features_have_a_maximum_of_one_a_column() -> None:
    self_map = torch.rand(6, 6, generator=seeded(0)).softmax(dim=1)
    assert torch.allclose(cluster_features(self_map).amax(dim=0), torch.ones(6), atol=1e-3)


def test_the_best_partition_of_few_samples_is_found() -> None:
    samples = torch.randn(9, 2, generator=seeded(5))
    labels, centres = k_means(samples, 3)

    def spread(partition: tuple[int, ...]) -> float:
        total = 0.0
        for cluster in set(partition):
            inside = samples[[i for i, c in enumerate(partition) if c == cluster]]
            total += float((inside - inside.mean(dim=0)).square().sum())
        return total

    best = min(map(spread, itertools.product(range(3), repeat=9)))
    assert spread(tuple(labels.tolist())) == pytest.approx(best, rel=1e-4)
    for cluster in range(3):
        assert torch.allclose(centres[cluster], samples[labels == cluster].mean(dim=0), atol=1e-6)


def test_clusters_are_the_same_each_time_and_draw_from_no_other_generator() -> None:
    samples = torch.randn(40, 6, generator=seeded(1))
    before = torch.get_rng_state()
    first, again = k_means(samples, 5), k_means(samples, 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert torch.equal(before, torch.get_rng_state())


def test_a_warm_start_goes_on_from_its_centres() -> None:
    self_map, expected = block_map([20, 30, 14])
    features = cluster_features(self_map)
    start = torch.stack([features[expected == label].mean(dim=0) for label in (2, 0, 1)])
    labels, _ = k_means(features, 3, start=start)
    assert torch.equal(labels, torch.tensor([1, 2, 0])[expected])


def test_more_clusters_than_distinct_samples_leave_some_empty() -> None:
    samples = torch.tensor([[0.0], [0.0], [1.0]])
    labels, _ = k_means(samples, 8)
    assert labels[0] == labels[1] != labels[2]


def evidence_by_loops(word_maps: Tensor, masks: Tensor, threshold: float) -> Tensor:
    rows: list[list[float]] = []
    for s, mask in enumerate(masks):
        column = word_maps[:, s].double()
        sharp = [float(torch.sigmoid(10 * (x / column.max() - threshold))) for x in column]
        low, high = min(sharp), max(sharp)
        rows.append([(x - low) / (high - low) * bool(m) for x, m in zip(sharp, mask, strict=True)])
    return torch.tensor(rows)


def test_evidence_equals_loops_and_stays_inside_the_mask() -> None:
    masks = box_masks([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], 4, 4)
    word_maps = torch.rand(16, 2, generator=seeded(2)) * torch.tensor([0.3, 0.01])
    ours = word_evidence(word_maps, masks, 0.2)
    assert torch.allclose(ours, evidence_by_loops(word_maps, masks, 0.2), atol=1e-5)
    assert not ours[~masks].any()
    assert not word_evidence(torch.full((16, 2), 0.5), masks, 0.2).any()


def test_clusters_go_to_the_subject_with_the_best_score_or_to_the_background() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    evidence = torch.tensor(
        [
            [0.9, 0.8, 0.1, 0.0, 0.2, 0.6, 0.1, 0.0],
            [0.0, 0.1, 0.7, 1.0, 0.5, 0.5, 0.0, 0.1],
        ]
    )
    # Scores: the sum over the cluster, over min(all of the subject's evidence, 2 cells).
    assert share_out(labels, evidence, 0.2).long().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
    ]
    assert share_out(labels, evidence, 0.0).any(dim=0).all()
    assert not share_out(labels, evidence, 0.99).any()


def test_a_small_sum_of_evidence_is_what_a_score_is_measured_by() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1])
    evidence = torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.0]])
    assert share_out(labels, evidence, 0.9).tolist() == [[True] * 4 + [False]]


def test_a_lost_subject_gets_its_box_back_and_others_lose_it() -> None:
    boxes = box_masks([(0, 0, 0.5, 1), (0.5, 0, 1, 1)], 2, 4)
    found = torch.ones(2, 8, dtype=torch.bool)
    found[1] = False
    fixed = with_boxes_of_lost(found, boxes)
    assert torch.equal(fixed[1], boxes[1])
    assert torch.equal(fixed[0], ~boxes[1])
    assert torch.equal(with_boxes_of_lost(fixed, boxes), fixed)


def test_no_subject_is_ever_left_without_a_cell() -> None:
    generator = seeded(7)
    for _ in range(200):
        corners = torch.rand(3, 2, 2, generator=generator).sort(dim=1).values
        boxes = box_masks([(*c[0].tolist(), *c[1].tolist()) for c in corners], 4, 4)
        masks = torch.rand(3, 16, generator=generator) > 0.93
        fixed = with_boxes_of_lost(masks, boxes)
        assert fixed.any(dim=1).all()
        lost = ~masks.any(dim=1)
        assert torch.equal(fixed[lost], boxes[lost])


def test_masks_are_resized_to_the_nearest_cells() -> None:
    masks = box_masks([(0, 0, 0.5, 1), (0.5, 0.5, 1, 1)], 4, 4)
    assert torch.equal(
        resize_masks(masks, (4, 4), (8, 12)),
        box_masks([(0, 0, 0.5, 1), (0.5, 0.5, 1, 1)], 8, 12),
    )
    assert torch.equal(resize_masks(masks, (4, 4), (4, 4)), masks)
    assert resize_masks(masks, (4, 4), (2, 2)).tolist() == [
        [True, False, True, False],
        [False, False, False, True],
    ]
