"""A long clip of several prompts, made plainly: pair by pair, clip by clip, clean clips blended.

Shares no code with the library. The clips of a pair do not even meet in a batch: the source runs
first and leaves its keys and values, then the target runs with them. Samplers are written out.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.techniques.ditctrl_reference import attention, blended

SDPA = F.scaled_dot_product_attention


@dataclass
class Denoiser:
    """A denoiser whose chosen attention modules can keep, or be given, keys and values."""

    model: Any
    paths: Sequence[str]
    kept: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _inside: str = ""
    _given: bool = False

    def __call__(self, given: bool, **inputs: Any) -> Tensor:
        """Predict; with the keys and values that the latest other call left, if ``given``."""
        self._given = given
        with self._watched(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", self._attend)
            return self.model(**inputs, return_dict=False)[0]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        if not self._inside:
            return SDPA(query, key, value, **options)
        if not self._given:
            self.kept[self._inside] = (key, value)
            return SDPA(query, key, value, **options)
        key, value = self.kept[self._inside]
        return attention(query, key, value).to(query)

    @contextmanager
    def _watched(self) -> Generator[None]:
        handles: list[Any] = []
        for path in self.paths:
            module = self.model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(lambda *_, p=path: self._enter(p)))
            handles.append(module.register_forward_hook(lambda *_: self._enter("")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> None:
        self._inside = path


@dataclass
class Long:
    """One long clip.

    Attributes:
        pipe: For its denoiser, its text encoder and the timesteps of its scheduler.
        prompts: In order.
        transitions: Tiles between two.
        overlap: Latent frames.
        shared: Attention modules that share.
        steps: Steps at which they do.
        guidance: Scale.
    """

    pipe: Any
    prompts: Sequence[str]
    transitions: int
    overlap: int
    shared: Sequence[str]
    steps: Sequence[int]
    guidance: float
    length: int

    def run(self, noise: Tensor, total: int) -> Tensor:
        """Last latents, from noise of the whole clip."""
        kind = type(self.pipe).__name__
        self.axis = 1 if kind == "CogVideoXPipeline" else 2
        model = self.pipe.unet if kind == "AnimateDiffPipeline" else self.pipe.transformer
        self.denoiser = Denoiser(model, self.shared)
        positive, negative = self._texts()
        self.pipe.scheduler.set_timesteps(total)
        long = noise.double()
        for index, timestep in enumerate(self.pipe.scheduler.timesteps):
            clean: list[Tensor] = []
            starts: list[int] = []
            for pair in range(len(positive) - 1):
                for is_target, tile in ((False, pair), (True, pair + 1)):
                    start = tile * (self.length - self.overlap)
                    given = is_target and index in self.steps
                    z = long.narrow(self.axis, start, self.length)
                    predicted = self._guided(
                        z, timestep, positive[tile], negative, pair, given=given
                    )
                    clean.append(self._clean(z, predicted, index))
                    starts.append(start)
            long = self._next(long, blended(torch.cat(clean), starts, self.axis), index)
        return long

    def _texts(self) -> tuple[list[Tensor], Tensor]:
        options: dict[str, Any] = {"device": "cpu", "do_classifier_free_guidance": True}
        if hasattr(self.pipe, "transformer"):
            options |= {"max_sequence_length": 16, "num_videos_per_prompt": 1}
        else:
            options |= {"num_images_per_prompt": 1}
        ends = [
            self.pipe.encode_prompt(prompt=text, negative_prompt="", **options)
            for text in self.prompts
        ]
        found = [ends[0][0]]
        for before, after in pairwise(ends):
            for r in range(self.transitions):
                w = (r + 1) / (self.transitions + 1)
                found.append((1 - w) * before[0] + w * after[0])
            found.append(after[0])
        return found, ends[0][1]

    def _guided(
        self, z: Tensor, timestep: Tensor, text: Tensor, no_text: Tensor, pair: int, *, given: bool
    ) -> Tensor:
        """Guided prediction of one tile; each branch keeps and is given its own."""
        both: list[Tensor] = []
        for branch, words in enumerate((no_text, text)):
            store = self.__dict__.setdefault("stores", {}).setdefault((pair, branch), {})
            self.denoiser.kept = store
            both.append(self._predict(z.float(), timestep, words, given).double())
        return both[0] + self.guidance * (both[1] - both[0])

    def _predict(self, z: Tensor, timestep: Tensor, words: Tensor, given: bool) -> Tensor:
        kind = type(self.pipe).__name__
        if kind == "AnimateDiffPipeline":
            words = words.repeat_interleave(self.length, 0)
            return self.denoiser(given, sample=z, timestep=timestep, encoder_hidden_states=words)
        inputs = {"hidden_states": z, "timestep": timestep.expand(1)}
        if kind == "CogVideoXPipeline":
            side = 8 * z.shape[-1]
            inputs["image_rotary_emb"] = self.pipe._prepare_rotary_positional_embeddings(
                side, side, self.length, torch.device("cpu")
            )
        return self.denoiser(given, encoder_hidden_states=words, **inputs)

    def _level(self, index: int) -> tuple[float, float]:
        """Signal and noise of the latents at a step (squares sum to one, or both to one)."""
        scheduler = self.pipe.scheduler
        if type(self.pipe).__name__ == "WanPipeline":
            sigma = float(scheduler.sigmas[index])
            return 1 - sigma, sigma
        steps = [int(t) for t in scheduler.timesteps]
        if index < len(steps):
            share = float(scheduler.alphas_cumprod[steps[index]])
        else:
            gap = scheduler.config.num_train_timesteps // len(steps)
            at = steps[-1] - gap
            share = float(
                scheduler.alphas_cumprod[at] if at >= 0 else scheduler.final_alpha_cumprod
            )
        return share**0.5, (1 - share) ** 0.5

    def _clean(self, z: Tensor, predicted: Tensor, index: int) -> Tensor:
        signal, noise = self._level(index)
        kind = type(self.pipe).__name__
        if kind == "WanPipeline":
            return z - noise * predicted
        if self.pipe.scheduler.config.prediction_type == "v_prediction":
            return signal * z - noise * predicted
        return (z - noise * predicted) / signal

    def _next(self, z: Tensor, clean: Tensor, index: int) -> Tensor:
        """One deterministic step: the same noise, at the next level."""
        signal, noise = self._level(index)
        after, less = self._level(index + 1)
        return after * clean + less * (z - signal * clean) / noise
