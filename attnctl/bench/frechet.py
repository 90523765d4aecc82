"""Fréchet distance between sets of feature vectors, with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]

RESAMPLES = 300
RESAMPLING_SEED = 0


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean ``(D,)`` and covariance ``(D, D)`` of a set of features."""

    mean: Features
    covariance: Features

    @classmethod
    def fit(cls, features: Features) -> Gaussian:
        """Fit to features ``(N, D)``.

        Raises:
            ValueError: there are fewer than two rows, or values that are not finite.
        """
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise ValueError(
                f"features of shape {features.shape} have no covariance; give (N, D) finite"
                " numbers with N of 2 or more"
            )
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Squared Fréchet (2-Wasserstein) distance between two Gaussians.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)``; all roots are of symmetric matrices,
    so that a covariance without full rank does no harm.

    Source: Dowson and Landau 1982; as a measure of pictures, Heusel et al., NeurIPS 2017.
    """
    away = first.mean - second.mean
    root = _root(first.covariance)
    middle = root @ second.covariance @ root
    shared = np.sqrt(np.linalg.eigvalsh((middle + middle.T) / 2).clip(min=0)).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return float(away @ away + traces - 2 * shared)


def _root(matrix: Features) -> Features:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def resampled_distances(
    features: Features, reference: Gaussian, strata: Sequence[int]
) -> NDArray[np.float64]:
    """Distances of sets that are drawn again from a set, with repetition, stratum by stratum.

    The draws depend on ``strata`` alone: for two sets with the same strata they pick the same
    places, so that differences of two results are those of pairs.

    Args:
        features: ``(N, D)``.
        reference: What the distance is measured to.
        strata: A number for each row; a draw has as many rows of each as the set itself.

    Returns:
        ``(RESAMPLES,)``.

    Source: Efron 1979. Repeated rows add to the bias of a distance, so only the spread of these
    numbers is used, not their place.
    """
    groups = [np.flatnonzero(np.asarray(strata) == number) for number in sorted(set(strata))]
    source = np.random.default_rng(RESAMPLING_SEED)
    distances: list[float] = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([source.choice(group, len(group)) for group in groups])
        distances.append(frechet_distance(Gaussian.fit(features[rows]), reference))
    return np.asarray(distances)


def spread_interval(estimate: float, resampled: NDArray[np.float64]) -> tuple[float, float]:
    """95 percent interval: the estimate, 1.96 standard deviations of the resampled to each side."""
    half = 1.96 * float(resampled.std(ddof=1))
    return estimate - half, estimate + half
