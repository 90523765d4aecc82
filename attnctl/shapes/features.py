"""Features of pictures of the shapes world: the inner layer of a small classifier of scenes.

Distances between sets of pictures are measured in this space, as others do with Inception
features; a network that never saw anything but scenes knows what matters in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from attnctl.shapes.bundled import MODELS
from attnctl.shapes.vocabulary import BACKGROUNDS, MOST_OBJECTS, SMALL_VOCABULARY

FEATURES = 64
KINDS = len(SMALL_VOCABULARY.colours) * len(SMALL_VOCABULARY.shapes)
CLASSIFIER_FILE = MODELS / "features" / "model.safetensors"


@dataclass(frozen=True)
class Reading:
    """What the classifier says of ``B`` pictures, as logits.

    Attributes:
        kinds: Whether each colour and shape is there, ``(B, 16)``, colour by colour.
        count: How many objects there are, none to three, ``(B, 4)``.
        background: Which background, ``(B, 3)``.
    """

    kinds: Tensor
    count: Tensor
    background: Tensor


class SceneClassifier(nn.Module):
    """Convolutions, a mean over places, `FEATURES` numbers, three readings; 0.16 M weights.

    Attributes:
        centre: Mean of the inner numbers on rendered scenes, ``(FEATURES,)``.
        spread: Their standard deviations, ``(FEATURES,)``.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(3, 24, 2),
            *_convolution(24, 48, 2),
            *_convolution(48, 48, 1),
            *_convolution(48, 64, 2),
            *_convolution(64, 64, 1),
            *_convolution(64, 96, 1),
        )
        self.inner = nn.Linear(96, FEATURES)
        self.kinds = nn.Linear(FEATURES, KINDS)
        self.count = nn.Linear(FEATURES, MOST_OBJECTS + 1)
        self.background = nn.Linear(FEATURES, len(BACKGROUNDS))

        self.register_buffer("centre", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))

    def embed(self, pictures: Tensor) -> Tensor:
        """Features ``(B, FEATURES)`` of pictures ``(B, 3, 64, 64)`` in [0, 1].

        Each has mean 0 and variance 1 on rendered scenes, so that distances have a unit.
        """
        return (self._inner(pictures) - self.centre) / self.spread

    def forward(self, pictures: Tensor) -> Reading:
        """Read pictures ``(B, 3, 64, 64)`` in [0, 1]."""
        inner = nn.functional.silu(self._inner(pictures))
        return Reading(self.kinds(inner), self.count(inner), self.background(inner))

    def _inner(self, pictures: Tensor) -> Tensor:
        return self.inner(self.body(pictures * 2 - 1).mean((2, 3)))

    @torch.no_grad()
    def standardise(self, pictures: Tensor) -> None:
        """Give each feature mean 0 and variance 1 on these pictures."""
        inner = self._inner(pictures)
        self.centre.copy_(inner.mean(0))
        self.spread.copy_(inner.std(0))


def _convolution(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(after), nn.SiLU()


def load_classifier(file: Path = CLASSIFIER_FILE) -> SceneClassifier:
    """Load a classifier, the bundled one by default, in float32 and ready to read.

    Raises:
        FileNotFoundError: there are no such weights.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file} is missing; reinstall the package, or train it with "
            '"python -m attnctl.shapes.train_features"'
        )
    classifier = SceneClassifier()
    stored = load_file(file)
    floats = {n: t.float() if t.is_floating_point() else t for n, t in stored.items()}
    classifier.load_state_dict(floats)
    return classifier.eval()


def to_batch(images: Sequence[Image.Image]) -> Tensor:
    """Stack pictures as ``(B, 3, H, W)``, float32 in [0, 1]."""
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def picture_features(
    pictures: Tensor, classifier: SceneClassifier | None = None, batch_size: int = 100
) -> NDArray[np.float64]:
    """Features of pictures of the shapes world.

    Args:
        pictures: ``(B, 3, 64, 64)``, RGB in [0, 1].
        classifier: The bundled one by default.
        batch_size: Pictures at a time.

    Returns:
        ``(B, FEATURES)``.

    Raises:
        ValueError: the pictures have another shape.
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (3, 64, 64):
        raise ValueError(f"pictures are (B, 3, 64, 64), got the shape {tuple(pictures.shape)}")
    chosen = classifier or load_classifier()
    parts = [chosen.embed(part.float()) for part in pictures.split(batch_size)]
    return torch.cat(parts).double().numpy()
