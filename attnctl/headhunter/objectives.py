"""What a search maximises: a number for each picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image

from attnctl.errors import SettingError, nearest
from attnctl.functions import import_function

Objective = Callable[[list[Image.Image], list[str]], Sequence[float]]
"""Takes pictures and their prompts; gives one number for each, more is better."""

NAMED = ("shapes", "clip:FOLDER", "package.module:function")


def find_objective(
    text: str, prompts: Sequence[str] = (), device: str | torch.device = "cpu"
) -> Objective:
    """Find an objective by its name.

    Args:
        text: ``shapes`` (does the picture show what the caption names), ``clip:FOLDER`` (CLIP score
            with the model in that folder) or ``package.module:function``.
        prompts: Prompts that it must be able to score.
        device: Where a model of its own runs.

    Raises:
        SettingError: there is no such objective, or it cannot score a prompt.
    """
    if text == "shapes":
        _check_captions(prompts)
        return score_shapes
    kind, _, rest = text.partition(":")
    if not rest:
        raise SettingError(f"no objective {text!r}; {nearest(text, NAMED)}")
    return ClipScore(rest, device) if kind == "clip" else import_function("--objective", kind, rest)


def scores_of(objective: Objective, images: list[Image.Image], prompts: list[str]) -> list[float]:
    """Score pictures, and check what the objective gives.

    Raises:
        SettingError: it gives another number of scores, or one that is not finite.
    """
    given: Any = objective(images, prompts)
    if hasattr(given, "tolist"):
        given = given.tolist()
    try:
        scores = [float(one) for one in given]
    except (TypeError, ValueError):
        raise SettingError(f"the objective gave {given!r:.80}; one number a picture") from None
    if len(scores) != len(images):
        raise SettingError(f"the objective gave {len(scores)} scores for {len(images)} pictures")
    for score, prompt in zip(scores, prompts, strict=True):
        if not math.isfinite(score):
            raise SettingError(f"the objective gave {score} for a picture of {prompt!r:.80}")
    return scores


def score_shapes(images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    """Tell how well pictures of the shapes world show what their captions name.

    Returns:
        For each picture, objects that are named and shown over those that are named or shown, in
        [0, 1]; 1 is everything named and nothing else.
    """
    from attnctl.shapes.verifier import verify

    verdicts = [verify(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    return [(len(v.wanted) - len(v.missing)) / (len(v.wanted) + len(v.extra)) for v in verdicts]


class ClipScore:
    """Cosine between CLIP's vectors of a picture and its prompt, times 100.

    Args:
        folder: A CLIP model as transformers saves it (safetensors), or its hub id.
        device: Where it runs.

    Source: Hessel et al., "CLIPScore", EMNLP 2021, arXiv 2104.08718, without the clip at 0.

    Raises:
        SettingError: there is no CLIP model.
    """

    def __init__(self, folder: str, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        try:
            self._model: Any = CLIPModel.from_pretrained(folder, use_safetensors=True)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._processor: Any = CLIPImageProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            raise SettingError(f"cannot load a CLIP model from {folder!r}: {reason}") from error
        self._model.to(device).eval()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Score pictures; a long prompt counts up to CLIP's limit."""
        device = self._model.device
        pixels = self._processor(images=list(images), return_tensors="pt").to(device)
        tokens = self._tokenizer(
            list(prompts), padding=True, truncation=True, return_tensors="pt"
        ).to(device)
        out = self._model(**pixels, **tokens)
        cosine = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds)
        return [100 * float(one) for one in cosine]


def _check_captions(prompts: Sequence[str]) -> None:
    from attnctl.shapes.captions import parse_caption

    for prompt in prompts:
        try:
            parse_caption(prompt)
        except ValueError as error:
            raise SettingError(
                f"the objective 'shapes' needs captions of shapes: {error}"
            ) from None
