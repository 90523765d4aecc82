"""Objectives whose answer is known."""

from __future__ import annotations

import os
import time

import numpy as np

calls: list[str] = []


def redness(images, prompts):
    """How red pictures are, in [0, 255]; may be slow, so that a test can kill it half way."""
    time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
    calls.extend(prompts)
    return [float(np.asarray(image.convert("RGB"))[..., 0].mean()) for image in images]


class Resembles:
    """How close pictures come to given ones, by prompt; 0 is equal."""

    def __init__(self, wanted):
        self.wanted = {prompt: np.asarray(image, dtype=float) for prompt, image in wanted.items()}

    def __call__(self, images, prompts):
        return [
            -np.abs(np.asarray(image, dtype=float) - self.wanted[prompt]).mean()
            for image, prompt in zip(images, prompts, strict=True)
        ]


def too_few(images, prompts):
    return [1.0]


def not_a_number(images, prompts):
    return [float("nan")] * len(images)


no_function = 3
