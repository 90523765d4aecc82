"""The classifier of scenes: it reads fresh scenes, and its features see what is wrong."""

import json

import pytest
import torch
from PIL import Image

from attnctl.bench.frechet import Gaussian, frechet_distance
from attnctl.shapes import draw_scenes, render
from attnctl.shapes.features import (
    CLASSIFIER_FILE,
    FEATURES,
    SceneClassifier,
    load_classifier,
    picture_features,
    to_batch,
)
from attnctl.shapes.train_features import (
    FIGURES_FILE,
    Labels,
    accuracy,
    distance_ladders,
    draw_varied_scenes,
    main,
)


def generator(seed: int = 77) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def classifier() -> SceneClassifier:
    return load_classifier()


def test_weights_are_small() -> None:
    assert CLASSIFIER_FILE.stat().st_size <= 500 * 1024


def test_fresh_scenes_are_read(classifier: SceneClassifier) -> None:
    right = accuracy(classifier, draw_scenes(200, generator()))
    assert right["kinds"] >= 0.95
    assert min(right["count"], right["background"]) >= 0.98


def test_labels_name_what_was_drawn() -> None:
    scenes = draw_scenes(20, generator())
    labels = Labels.of(scenes)
    for row in range(20):
        codes = {
            scenes.settings.vocabulary.colours.index(thing.colour) * 4
            + scenes.settings.vocabulary.shapes.index(thing.shape)
            for thing in scenes.scene(row).objects
        }
        assert set(labels.kinds[row].nonzero()[:, 0].tolist()) == codes
        assert labels.count[row] == len(codes)


def test_training_scenes_have_twins_and_empty_ones() -> None:
    scenes = draw_varied_scenes(600, generator())
    labels = Labels.of(scenes)
    assert (labels.count == 0).any()
    assert (labels.kinds.sum(1) < labels.count).any()


def test_features_are_standardised_on_scenes(classifier: SceneClassifier) -> None:
    features = picture_features(render(draw_scenes(1000, generator())), classifier)
    assert features.shape == (1000, FEATURES)
    assert abs(features.mean(0)).max() < 0.2
    assert abs(features.std(0) - 1).max() < 0.2


def test_distances_grow_with_each_corruption(classifier: SceneClassifier) -> None:
    ladders = distance_ladders(classifier, count=300, reference_count=1500)
    for name, ladder in ladders.items():
        values = list(ladder.values())
        assert values == sorted(values), name
        assert values[-1] > 1.5 * values[0], name


def test_two_fresh_sets_are_near_each_other(classifier: SceneClassifier) -> None:
    first, second = (
        Gaussian.fit(picture_features(render(draw_scenes(1500, generator(seed))), classifier))
        for seed in (1, 2)
    )
    assert frechet_distance(first, second) < 0.02 * FEATURES


def test_features_do_not_depend_on_the_batch(classifier: SceneClassifier) -> None:
    pictures = render(draw_scenes(7, generator()))
    whole = picture_features(pictures, classifier)
    parts = picture_features(pictures, classifier, batch_size=2)
    assert abs(whole - parts).max() < 1e-4


def test_pictures_are_read_as_the_tensors_they_came_from() -> None:
    pictures = (render(draw_scenes(2, generator())) * 255).round()
    images = [Image.fromarray(p.permute(1, 2, 0).byte().numpy()) for p in pictures]
    assert torch.equal(to_batch(images), pictures / 255)


def test_pictures_of_another_size_are_refused(classifier: SceneClassifier) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\)"):
        picture_features(torch.zeros(2, 3, 32, 32), classifier)


def test_the_card_has_the_figures() -> None:
    figures = json.loads(FIGURES_FILE.read_text())
    card = CLASSIFIER_FILE.with_name("README.md").read_text()
    for share in figures["accuracy"].values():
        assert f"{100 * share:.1f} %" in card
    for ladder in figures["distance"].values():
        assert list(ladder.values()) == sorted(ladder.values())
        assert all(f"| {distance:.2f} |" in card for distance in ladder.values())


def test_two_trainings_give_the_same_weights(tmp_path, capsys) -> None:
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    for file in files:
        assert main(["--steps", "3", "--out", str(file), "--stage", "train"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_classifier(files[0]).training is False
