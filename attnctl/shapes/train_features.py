"""Train the classifier of scenes whose inner layer measures pictures.

``python -m attnctl.shapes.train_features`` takes ten minutes on one CPU core and writes weights and
figures; ``--stage figures`` only measures the weights again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from attnctl.bench.frechet import Gaussian, frechet_distance
from attnctl.files import write_text
from attnctl.shapes.features import (
    CLASSIFIER_FILE,
    KINDS,
    SceneClassifier,
    load_classifier,
    picture_features,
)
from attnctl.shapes.loop import write_atomically
from attnctl.shapes.vocabulary import PALETTE, SMALL_VOCABULARY
from attnctl.shapes.world import SceneBatch, draw_scenes, render

TRAINING_SEED = 20
FIGURES_SEED = 21
BATCH = 64
FIGURES_FILE = CLASSIFIER_FILE.with_name("figures.json")


@dataclass(frozen=True)
class Labels:
    """What scenes show.

    Attributes:
        kinds: Whether each colour and shape is there, 0 or 1, ``(B, 16)``.
        count: Number of objects, ``(B,)``.
        background: Code of the background, ``(B,)``.
    """

    kinds: Tensor
    count: Tensor
    background: Tensor

    @classmethod
    def of(cls, scenes: SceneBatch) -> "Labels":
        """Read off what scenes show."""
        codes = scenes.colour * len(SMALL_VOCABULARY.shapes) + scenes.shape
        kinds = torch.zeros(len(scenes), KINDS)
        kinds.scatter_reduce_(1, codes, scenes.present.float(), "amax")
        return cls(kinds, scenes.present.sum(1), scenes.background)


def draw_varied_scenes(count: int, generator: torch.Generator) -> SceneBatch:
    """Draw scenes, half of them with kinds by chance, twins included, one in 30 without objects."""
    scenes = draw_scenes(count, generator)
    chance = torch.rand(count, 1, generator=generator)
    colour = torch.randint(len(SMALL_VOCABULARY.colours), (count, 3), generator=generator)
    shape = torch.randint(len(SMALL_VOCABULARY.shapes), (count, 3), generator=generator)
    repainted = torch.tensor([PALETTE[name] for name in SMALL_VOCABULARY.colours])[colour]
    free = chance < 0.5
    return replace(
        scenes,
        present=scenes.present & (chance < 29 / 30),
        colour=torch.where(free, colour, scenes.colour),
        shape=torch.where(free, shape, scenes.shape),
        paint=torch.where(free[..., None], repainted, scenes.paint),
    )


def blur(pictures: Tensor, strength: Tensor | float) -> Tensor:
    """Mix pictures ``(B, 3, H, W)`` with their blur over 5 x 5 pixels; strength in [0, 1]."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    weight = (line[:, None] * line).expand(3, 1, 5, 5)
    soft = F.conv2d(F.pad(pictures, (2, 2, 2, 2), mode="replicate"), weight, groups=3)
    return pictures + strength * (soft - pictures)


def add_noise(pictures: Tensor, deviation: Tensor | float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise; the result stays in [0, 1]."""
    return (pictures + deviation * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def _disturb(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the pictures and add noise to half of them, each by a random, mild amount."""
    amount = torch.rand(2, len(pictures), 1, 1, 1, generator=generator)
    chosen = torch.rand(2, len(pictures), 1, 1, 1, generator=generator) < 0.5
    softened = blur(pictures, 0.3 * amount[0] * chosen[0])
    return add_noise(softened, 0.015 * amount[1] * chosen[1], generator)


def train(steps: int, say: Callable[[str], None]) -> SceneClassifier:
    """Train a classifier; the same number of steps gives the same weights on one machine."""
    torch.manual_seed(TRAINING_SEED)
    generator = torch.Generator().manual_seed(TRAINING_SEED)
    classifier = SceneClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        scenes = draw_varied_scenes(BATCH, generator)
        labels = Labels.of(scenes)
        read = classifier(_disturb(render(scenes), generator))
        loss = (
            4 * F.binary_cross_entropy_with_logits(read.kinds, labels.kinds)
            + F.cross_entropy(read.count, labels.count)
            + F.cross_entropy(read.background, labels.background)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            say(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}")
    classifier.eval().standardise(render(draw_scenes(2000, generator)))
    return classifier


@torch.no_grad()
def accuracy(classifier: SceneClassifier, scenes: SceneBatch) -> dict[str, float]:
    """Shares of scenes that are read right: all kinds and no other, the count, the background."""
    labels = Labels.of(scenes)
    read = classifier(render(scenes))
    right = {
        "kinds": ((read.kinds > 0) == labels.kinds.bool()).all(1),
        "count": read.count.argmax(1) == labels.count,
        "background": read.background.argmax(1) == labels.background,
    }
    return {name: round(float(each.float().mean()), 4) for name, each in right.items()}


def _mispaint(scenes: SceneBatch, amount: float) -> SceneBatch:
    """Mix every object's colour with the next one of the vocabulary."""
    palette = torch.tensor([PALETTE[name] for name in SMALL_VOCABULARY.colours])
    other = palette[(scenes.colour + 1) % len(palette)]
    return replace(scenes, paint=torch.lerp(scenes.paint, other, amount))


def _remove(scenes: SceneBatch, share: float) -> SceneBatch:
    """Take the last object out of the first ``share`` of the scenes."""
    last = scenes.present.sum(1, keepdim=True) - 1
    cut = torch.arange(len(scenes))[:, None] < share * len(scenes)
    return replace(scenes, present=scenes.present & ~(cut & (torch.arange(3)[None] == last)))


def distance_ladders(
    classifier: SceneClassifier, count: int = 500, reference_count: int = 5000
) -> dict[str, dict[str, float]]:
    """Distances of corrupted scenes to clean ones, by corruption and its amount; 0 is none.

    Args:
        classifier: Gives the features.
        count: Corrupted scenes.
        reference_count: Other, clean scenes.
    """
    generator = torch.Generator().manual_seed(FIGURES_SEED)
    clean = render(draw_scenes(reference_count, generator))
    reference = Gaussian.fit(picture_features(clean, classifier))
    scenes = draw_scenes(count, generator)
    pictures = render(scenes)
    ladders: dict[str, list[tuple[float, Tensor]]] = {
        "noise": [(a, add_noise(pictures, a, generator)) for a in (0.0, 0.1, 0.15, 0.2)],
        "blur": [(a, blur(blur(pictures, a), a)) for a in (0.0, 0.35, 0.7, 1.0)],
        "wrong colour": [(a, render(_mispaint(scenes, a))) for a in (0.0, 0.15, 0.3, 0.5)],
        "missing object": [(a, render(_remove(scenes, a))) for a in (0.0, 0.1, 0.3, 0.6)],
    }

    def distance(shown: Tensor) -> float:
        return frechet_distance(Gaussian.fit(picture_features(shown, classifier)), reference)

    return {
        name: {f"{amount:g}": round(distance(shown), 3) for amount, shown in ladder}
        for name, ladder in ladders.items()
    }


def figures(classifier: SceneClassifier) -> dict[str, Any]:
    """What the card of the classifier says."""
    generator = torch.Generator().manual_seed(FIGURES_SEED + 1)
    return {
        "accuracy": accuracy(classifier, draw_scenes(2000, generator)),
        "distance": distance_ladders(classifier),
    }


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m attnctl.shapes.train_features", description=__doc__
    )
    parser.add_argument("--steps", type=int, default=2500, help=f"batches of {BATCH} scenes")
    parser.add_argument("--out", type=Path, default=CLASSIFIER_FILE, help="safetensors file")
    parser.add_argument("--stage", choices=["train", "figures", "all"], default="all")
    chosen = parser.parse_args(words)
    if chosen.stage != "figures":
        trained = train(chosen.steps, lambda text: print(text, file=sys.stderr))  # noqa: T201
        stored = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in trained.state_dict().items()
        }
        write_atomically(chosen.out, lambda to: save_file(stored, to))
    if chosen.stage != "train":
        text = json.dumps(figures(load_classifier(chosen.out)), indent=1) + "\n"
        write_text(chosen.out.with_name(FIGURES_FILE.name), text)
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
