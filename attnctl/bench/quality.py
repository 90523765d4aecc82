"""How near pictures are to the scenes that their prompts describe, as sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnctl.bench.frechet import (
    Gaussian,
    frechet_distance,
    resampled_distances,
    spread_interval,
)
from attnctl.bench.statistics import Interval
from attnctl.shapes.captions import Prompt
from attnctl.shapes.features import load_classifier, picture_features
from attnctl.shapes.vocabulary import PALETTE, SMALL_VOCABULARY
from attnctl.shapes.world import SceneBatch, WorldSettings, draw_scenes, render

REFERENCE_SEED = 30
FLOOR_SEED = 31
SCENES_A_PROMPT = 10
"""So many rendered scenes of every prompt make the reference."""


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the pictures of a condition are from rendered scenes.

    Attributes:
        condition: Its name.
        distance: Squared Fréchet distance of features, biased upwards as `FrechetTable.floor` is.
        interval: 95 percent, by the bootstrap over pictures within each number of objects.
        difference: Distance minus that of the reference condition.
        difference_interval: 95 percent, paired by prompt and seed.
    """

    condition: str
    distance: float
    interval: Interval
    difference: float | None = None
    difference_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class FrechetTable:
    """Distances of all conditions.

    Attributes:
        floor: Distance of fresh rendered scenes, one a prompt: what a perfect sampler would get
            from so few pictures.
        floor_interval: 95 percent.
        rows: One a condition.
    """

    floor: float
    floor_interval: Interval
    rows: list[Distance]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        return asdict(self)


def scenes_of(asked: Sequence[Prompt], generator: torch.Generator) -> SceneBatch:
    """Draw one scene a prompt that shows exactly what the prompt names.

    Args:
        asked: Prompts of the small vocabulary, each with one to three objects.
        generator: Source of places, sizes, tints and backgrounds.

    Returns:
        Scenes in the order of the prompts.
    """
    words = SMALL_VOCABULARY
    made: list[SceneBatch] = []
    for prompt in asked:
        weights = tuple(float(len(prompt.objects) == number) for number in (1, 2, 3))
        settings = WorldSettings(count_weights=(weights[0], weights[1], weights[2]))
        scene = draw_scenes(1, generator, settings)
        colour, shape, paint = scene.colour.clone(), scene.shape.clone(), scene.paint.clone()
        for place, kind in enumerate(prompt.objects):
            colour[0, place] = words.colours.index(kind.colour)
            shape[0, place] = words.shapes.index(kind.shape)
            tint = settings.colour_jitter * (torch.rand(3, generator=generator) * 2 - 1)
            paint[0, place] = (torch.tensor(PALETTE[kind.colour]) + tint).clamp(0, 1)
        made.append(replace(scene, colour=colour, shape=shape, paint=paint))
    return SceneBatch.join(made)


def measure_distances(
    pictures: Mapping[str, torch.Tensor], asked: Sequence[Prompt], reference: str
) -> FrechetTable:
    """Compare the pictures of every condition to rendered scenes of the same prompts.

    Args:
        pictures: ``(N, 3, 64, 64)`` in [0, 1] for each condition, in the order of ``asked``.
        asked: ``N`` prompts.
        reference: The condition that the others are compared to.
    """
    classifier = load_classifier()
    strata = [len(prompt.objects) for prompt in asked]

    def features_of(shown: torch.Tensor) -> NDArray[np.float64]:
        return picture_features(shown, classifier)

    many = scenes_of(list(asked) * SCENES_A_PROMPT, torch.Generator().manual_seed(REFERENCE_SEED))
    truth = Gaussian.fit(features_of(render(many)))

    def measured(shown: torch.Tensor) -> tuple[float, NDArray[np.float64]]:
        features = features_of(shown)
        distance = frechet_distance(Gaussian.fit(features), truth)
        return distance, resampled_distances(features, truth, strata)

    fresh = scenes_of(asked, torch.Generator().manual_seed(FLOOR_SEED))
    floor, floor_spread = measured(render(fresh))
    results = {name: measured(shown) for name, shown in pictures.items()}
    rows = [_row(name, results, reference) for name in pictures]
    return FrechetTable(floor, spread_interval(floor, floor_spread), rows)


def _row(
    name: str, results: Mapping[str, tuple[float, NDArray[np.float64]]], reference: str
) -> Distance:
    distance, spread = results[name]
    interval = spread_interval(distance, spread)
    if name == reference:
        return Distance(name, distance, interval)
    other, other_spread = results[reference]
    difference = distance - other
    return Distance(
        name, distance, interval, difference, spread_interval(difference, spread - other_spread)
    )
