"""Nearness of pictures beside torchmetrics, and errors of layers beside a calculation by hand."""

import math

import numpy as np
import pytest
import torch

import attnctl
from attnctl.bench.sparse.fidelity import (
    median_decibels,
    signal_to_noise,
    structural_similarity,
)
from attnctl.bench.sparse.layers import LayerErrors, Watch, attention_seconds, served_places
from tests.support.pipelines import build, generate
from tests.techniques.sparse_runs import SMALL


def pictures(noise: float = 0.1):
    source = np.random.default_rng(0)
    first = source.random((40, 32, 3))
    return first, np.clip(first + noise * source.standard_normal(first.shape), 0, 1)


def as_batch(picture):
    return torch.from_numpy(picture).permute(2, 0, 1)[None]


def test_similarity_and_noise_equal_torchmetrics():
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    first, second = pictures()
    pair = as_batch(first), as_batch(second)
    expected = structural_similarity_index_measure(*pair, data_range=1.0)
    assert structural_similarity(first, second) == pytest.approx(float(expected), abs=2e-3)
    expected = peak_signal_noise_ratio(*pair, data_range=1.0)
    assert signal_to_noise(first, second) == pytest.approx(float(expected), rel=1e-6)


def test_equal_pictures():
    first, _ = pictures()
    assert signal_to_noise(first, first) == math.inf
    assert structural_similarity(first, first) == pytest.approx(1.0)


def test_pictures_of_different_size_are_refused():
    first, _ = pictures()
    with pytest.raises(ValueError, match="cannot be compared"):
        signal_to_noise(first, first[:20])
    with pytest.raises(ValueError, match="smaller than the window"):
        structural_similarity(first[:8], first[:8])


def test_equal_pictures_count_as_the_highest_of_a_median():
    assert median_decibels([30.0, None, 40.0]) == 40.0
    assert median_decibels([30.0, None, None]) is None


def test_a_layer_has_the_error_of_its_cheaper_steps():
    pipe = build("sd1")
    observer = LayerErrors()
    sparse = attnctl.SparseAttention(steps="1-", sparsity=0.5, **SMALL)
    with attnctl.attach(pipe, [sparse, observer]) as session:
        generate(pipe, steps=3)
        report = session.report()
    served = served_places(report)
    assert {step for step, _ in served} == {1, 2}
    by_site = observer.by_site(report)
    assert set(by_site) == {site for _, site in served}
    for site, error in by_site.items():
        assert observer.found[0, site] == 0
        assert error == (observer.found[1, site] + observer.found[2, site]) / 2
        assert error > 0


def test_refreshes_are_no_cheaper_steps():
    pipe = build("sd1")
    technique = attnctl.Rettention(steps="always", refresh=3, **SMALL)
    with attnctl.attach(pipe, [technique, Watch()]) as session:
        generate(pipe, steps=5)
        report = session.report()
    assert {step for step, _ in served_places(report)} == {1, 2, 4}
    seconds = attention_seconds(report)
    assert {step for step, _ in seconds} == set(range(5))
    assert all(value > 0 for value in seconds.values())


def test_observers_change_nothing():
    pipe = build("sd1")
    plain = generate(pipe, steps=2)
    for observer in (Watch(), LayerErrors()):
        with attnctl.attach(pipe, [observer]):
            assert torch.equal(generate(pipe, steps=2), plain)
