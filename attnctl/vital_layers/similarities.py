"""How alike two pictures are to a network: 1 for equal ones, less for others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnctl.errors import SettingError, nearest
from attnctl.functions import import_function

Similarity = Callable[[Sequence[Image.Image], Sequence[Image.Image]], Sequence[float]]
"""From pictures and other pictures of the same prompts to one number a pair."""

NAMED = ("shapes", "dino:FOLDER", "package.module:function")


def find_similarity(text: str, device: str | torch.device = "cpu") -> Similarity:
    """Find a similarity by its name.

    Args:
        text: ``shapes`` (features of the bundled classifier of scenes), ``dino:FOLDER`` (a DINO or
            other vision model of transformers in that folder) or ``package.module:function``.
        device: Where a network runs.

    Raises:
        SettingError: there is no such similarity, or it cannot be loaded.
    """
    if text == "shapes":
        return shapes_similarity
    kind, _, rest = text.partition(":")
    if not rest:
        raise SettingError(f"no similarity {text!r}; {nearest(text, NAMED)}")
    return (
        DinoSimilarity(rest, device)
        if kind == "dino"
        else import_function("--similarity", kind, rest)
    )


def shapes_similarity(
    pictures: Sequence[Image.Image], others: Sequence[Image.Image]
) -> list[float]:
    """Cosine of standardised features of scenes, for pictures of the shapes world."""
    from attnctl.shapes.features import picture_features, to_batch

    first, second = (torch.from_numpy(picture_features(to_batch(p))) for p in (pictures, others))
    return _cosines(first, second)


class DinoSimilarity:
    """Cosine of picture embeddings of a vision model, DINOv2 in the reference.

    Which of DINO's features the authors compare is not told; this takes the pooled output, or the
    first token if the model has none.

    Args:
        folder: Local folder of a model in the layout of transformers, with its processor.
        device: Where it runs.

    Raises:
        SettingError: the folder holds no such model.
    """

    def __init__(self, folder: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModel

        if not Path(folder).is_dir():
            raise SettingError(
                f"dino:{folder}: no such folder; give one with a vision model of transformers, "
                "such as a download of facebook/dinov2-base"
            )
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise SettingError(f"dino:{folder}: {str(error).splitlines()[0]}") from error
        self._model = model.eval().to(device)
        self._device = device

    def __call__(
        self, pictures: Sequence[Image.Image], others: Sequence[Image.Image]
    ) -> list[float]:
        """Compare pair by pair."""
        return _cosines(self._embed(pictures), self._embed(others))

    @torch.no_grad()
    def _embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        plain = [picture.convert("RGB") for picture in pictures]
        output = self._model(**self._processor(plain, return_tensors="pt").to(self._device))
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled


def _cosines(first: Tensor, second: Tensor) -> list[float]:
    found = torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=1)
    return [float(value) for value in found]
