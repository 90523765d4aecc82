"""The band of VSTAR and the embeddings of its stages."""

from __future__ import annotations

import pytest
import torch

from attnctl.ops.temporal_maps import add_band, blend_stages, gaussian_band, row_peaks

LIKE = torch.zeros((), dtype=torch.float64)


def lifted(scores: torch.Tensor, sigma: float, scale: float = 1.0) -> torch.Tensor:
    band = gaussian_band(scores.shape[-1], sigma, scores)
    return add_band(scores, row_peaks(scores, "signed"), band, scale)


@pytest.mark.parametrize("frames", [1, 2, 7, 16])
def test_the_band_is_a_symmetric_toeplitz_matrix_with_ones_on_its_diagonal(frames: int) -> None:
    band = gaussian_band(frames, 1.7, LIKE)
    for i in range(frames):
        for j in range(frames):
            expected = torch.exp(torch.tensor(-((i - j) ** 2) / (2 * 1.7**2), dtype=torch.float64))
            assert band[i, j] == pytest.approx(float(expected), abs=1e-15)
    assert torch.equal(band, band.mT)
    assert torch.all(band.diagonal() == 1)


def test_narrow_bands_become_the_identity_and_wide_ones_change_nothing() -> None:
    assert torch.equal(gaussian_band(6, 1e-3, LIKE), torch.eye(6, dtype=torch.float64))
    scores = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    wide = lifted(scores, float("inf")).softmax(-1)
    assert torch.allclose(wide, scores.softmax(-1), atol=1e-14)


@pytest.mark.parametrize("level", [0.0, 2.5])
def test_equal_scores_give_the_exponential_of_the_band(level: float) -> None:
    probs = lifted(torch.full((5, 5), level, dtype=torch.float64), 1.3).softmax(-1)
    band = torch.exp(level * gaussian_band(5, 1.3, LIKE))
    assert torch.allclose(probs, band / band.sum(-1, keepdim=True), atol=1e-14)
    assert torch.allclose(probs.sum(-1), torch.ones(5, dtype=torch.float64))


def test_the_diagonal_gains_where_the_peak_is_positive() -> None:
    scores = torch.rand(4, 8, 8, dtype=torch.float64) + 0.1
    before, after = scores.softmax(-1), lifted(scores, 2.0).softmax(-1)
    assert torch.all(after.diagonal(dim1=-2, dim2=-1) > before.diagonal(dim1=-2, dim2=-1))


def test_turning_time_round_commutes_with_the_band() -> None:
    scores = torch.randn(2, 9, 9, dtype=torch.float64)
    assert torch.allclose(lifted(scores.flip(-1, -2), 1.5), lifted(scores, 1.5).flip(-1, -2))


def test_negative_peaks_are_kept_clamped_or_made_positive() -> None:
    scores = torch.tensor([[-3.0, -1.0], [2.0, 1.0]])
    assert row_peaks(scores, "signed").flatten().tolist() == [-1.0, 2.0]
    assert row_peaks(scores, "clamped").flatten().tolist() == [0.0, 2.0]
    assert row_peaks(scores, "absolute").flatten().tolist() == [1.0, 2.0]
    assert float(lifted(scores, 1e-3)[0, 0]) == -4.0  # the band is subtracted, as the authors do


def test_stages_stand_where_they_should_and_are_blended_between() -> None:
    stages = torch.randn(3, 2, 4)
    frames = blend_stages(stages, 10)  # stages at 0, 4 and 9
    assert frames.shape == (10, 2, 4)
    for place, stage in zip((0, 4, 9), stages, strict=True):
        assert torch.equal(frames[place], stage)
    assert torch.allclose(frames[1], 0.75 * stages[0] + 0.25 * stages[1])
    assert torch.allclose(frames[7], 0.4 * stages[1] + 0.6 * stages[2])
    held = blend_stages(stages, 10, blend=False)
    assert [int((held[t] == stages).all(dim=(1, 2)).nonzero()[0]) for t in range(10)] == [
        *[0] * 4,
        *[1] * 5,
        2,
    ]


def test_equal_stages_and_a_single_one_give_a_constant() -> None:
    stage = torch.randn(1, 2, 4)
    assert torch.allclose(blend_stages(stage.expand(4, 2, 4), 9), stage.expand(9, 2, 4))
    assert torch.equal(blend_stages(stage, 5), stage.expand(5, 2, 4))
    two = blend_stages(torch.cat([stage, stage + 1]), 129)  # no small integers for places
    steps = two[1:] - two[:-1]
    assert torch.allclose(steps, torch.full_like(steps, 1 / 128), atol=1e-5)
