"""Scores of an edit beside plain formulas and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from attnctl.errors import SettingError
from attnctl.pipelines.edit_scores import PSNR_LIMIT, score, ssim_map


def noisy(seed: int, amount: float = 40.0) -> Image.Image:
    """A smooth picture with seeded noise."""
    rows, columns = np.mgrid[0:48, 0:40]
    smooth = np.stack([4 * rows, 5 * columns, 100 + rows + columns], axis=2).astype(float)
    noise = np.random.default_rng(seed).normal(0, amount, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def test_equal_pictures_have_the_highest_scores() -> None:
    scores = score(noisy(0), noisy(0))

    assert scores.psnr == PSNR_LIMIT
    assert scores.ssim == pytest.approx(1.0)


def test_ssim_is_that_of_torchmetrics() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.image")
    a, b = (np.asarray(noisy(seed), dtype=np.float64) / 255 for seed in (1, 2))
    first, second = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (a, b))
    _, whole = metrics.structural_similarity_index_measure(
        first, second, data_range=1.0, return_full_image=True
    )
    ours = ssim_map(a, b)

    inner = (slice(5, -5), slice(5, -5))  # edges are padded in other ways
    assert np.allclose(ours[inner], whole[0].mean(0).numpy()[inner], atol=1e-6)


def test_inside_and_outside_are_told_apart() -> None:
    source = noisy(3)
    changed = np.asarray(source).copy()
    changed[:, 20:] = 0
    region = np.zeros((48, 40), bool)
    region[:, 20:] = True
    scores = score(source, Image.fromarray(changed), region, reconstruction=source)

    assert scores.psnr_outside == PSNR_LIMIT
    squares = (np.asarray(source, float)[:, 20:] / 255) ** 2
    assert scores.psnr_inside == pytest.approx(-10 * np.log10(squares.mean()))
    assert scores.psnr_inside < scores.psnr < scores.psnr_outside
    assert scores.reconstruction_psnr == PSNR_LIMIT
    assert set(scores.to_dict()) >= {"psnr", "ssim_outside", "ssim_inside"}


def test_a_region_of_everything_has_no_outside() -> None:
    scores = score(noisy(0), noisy(1), np.ones((48, 40), bool))

    assert scores.psnr_outside is None
    assert scores.psnr_inside == pytest.approx(scores.psnr)


def test_pictures_of_two_sizes_cannot_be_compared() -> None:
    with pytest.raises(SettingError, match="make them one size"):
        score(noisy(0), noisy(0).resize((20, 20)))
