"""The Fréchet distance: known values, sets without full rank, spread of resampled sets."""

import numpy as np
import pytest
from scipy import linalg

from attnctl.bench.frechet import (
    Gaussian,
    frechet_distance,
    resampled_distances,
    spread_interval,
)


def gaussian(mean, covariance) -> Gaussian:
    return Gaussian(np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float))


def random_covariance(source: np.random.Generator, width: int, rank: int) -> np.ndarray:
    factor = source.normal(size=(width, rank))
    return factor @ factor.T


def test_on_a_line_it_is_the_distance_of_means_and_deviations():
    first, second = gaussian([1.0], [[4.0]]), gaussian([4.0], [[9.0]])
    assert frechet_distance(first, second) == pytest.approx(3**2 + (2 - 3) ** 2)


def test_covariances_that_share_axes_add_up_axis_by_axis():
    first = gaussian([0, 0, 0], np.diag([1.0, 4.0, 9.0]))
    second = gaussian([1, 2, 2], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(first, second) == pytest.approx(9 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)


def test_it_equals_the_formula_with_a_general_matrix_root():
    source = np.random.default_rng(1)
    for width in (2, 7, 20):
        one, two = (random_covariance(source, width, width + 3) for _ in range(2))
        mean = source.normal(size=width)
        by_formula = mean @ mean + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
        measured = frechet_distance(gaussian(np.zeros(width), one), gaussian(mean, two))
        assert measured == pytest.approx(by_formula, rel=1e-9)


def test_it_is_symmetric_and_zero_between_equals_even_without_full_rank():
    source = np.random.default_rng(2)
    flat = gaussian(source.normal(size=8), random_covariance(source, 8, 3))
    other = gaussian(source.normal(size=8), random_covariance(source, 8, 5))
    assert frechet_distance(flat, flat) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(flat, other) == pytest.approx(frechet_distance(other, flat))


def test_large_samples_of_known_gaussians_come_near_the_exact_distance():
    source = np.random.default_rng(3)
    first = Gaussian.fit(source.normal(size=(40_000, 3)))
    second = Gaussian.fit(source.normal(size=(40_000, 3)) * 2 + 1)
    assert frechet_distance(first, second) == pytest.approx(3 * 1 + 3 * 1, rel=0.02)


@pytest.mark.parametrize("features", [np.zeros((1, 3)), np.zeros(4), np.full((5, 2), np.nan)])
def test_features_without_a_covariance_are_refused(features):
    with pytest.raises(ValueError, match="finite"):
        Gaussian.fit(features)


def test_the_interval_of_resampled_sets_shrinks_with_the_set():
    source = np.random.default_rng(4)
    truth = gaussian(np.zeros(4), np.eye(4))
    widths = []
    for count in (50, 800):
        features = source.normal(size=(count, 4)) + 1
        distance = frechet_distance(Gaussian.fit(features), truth)
        low, high = spread_interval(distance, resampled_distances(features, truth, [1] * count))
        assert low < 4 < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.4)


def test_every_draw_keeps_the_numbers_of_each_stratum():
    features = np.repeat([[0.0], [10.0]], 20, axis=0)
    truth = gaussian([0.0], [[1.0]])
    drawn = resampled_distances(features, truth, [1] * 20 + [2] * 20)
    assert drawn.std() == pytest.approx(0)
    assert resampled_distances(features, truth, [1] * 40).std() > 1


def test_sets_with_the_same_strata_are_drawn_in_pairs():
    source = np.random.default_rng(5)
    features = source.normal(size=(60, 2))
    truth = gaussian([0, 0], np.eye(2))
    first = resampled_distances(features, truth, [1] * 60)
    assert (first == resampled_distances(features.copy(), truth, [1] * 60)).all()
