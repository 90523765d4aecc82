"""HeadRouter in plain loops: no batched tricks, and no part of the package."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two heads ``(N, D)``, one product after the other."""
    left, right = a.double().flatten().tolist(), b.double().flatten().tolist()
    dot = math.fsum(x * y for x, y in zip(left, right, strict=True))
    sizes = math.fsum(x * x for x in left) * math.fsum(y * y for y in right)
    return dot / math.sqrt(sizes)


def ranked(similarities: list[float]) -> list[float]:
    """0 for the most similar head, 1 for the most different one."""
    top, low = max(similarities), min(similarities)
    return [(top - s) / max(top - low, 1e-6) for s in similarities]


def stressed(tokens: Tensor, alpha: float, upsilon: float) -> Tensor:
    """Tokens ``(N, C)`` weighted by their share in the softmax of each channel."""
    made = torch.empty_like(tokens)
    for channel in range(tokens.shape[1]):
        column = [math.exp(v) for v in tokens[:, channel].tolist()]
        for token, value in enumerate(column):
            weight = alpha * sigmoid(upsilon * value / math.fsum(column))
            made[token, channel] = weight * tokens[token, channel]
    return made


@dataclass
class Plain:
    """The settings of the published variant.

    Attributes:
        rows: Places of the source and of the target in the batch.
        text_first: Text before image tokens.
        singles: Attention modules from this one on belong to single blocks.
        period: Calls of the transformer a step; the first of them is conditional.
    """

    rows: tuple[int, int] = (0, 1)
    text_first: bool = True
    singles: int = 2
    period: int = 1
    gamma: float = 0.2
    delta: float = 0.5
    blend: float = 0.1
    blends_source: bool = False
    alpha: float = 2.0
    upsilon: float = 5.0
    on_map: bool = False

    def attend(self, query: Tensor, key: Tensor, value: Tensor, site: int, text: int) -> Tensor:
        """Attention of one site ``(B, H, N, D)``; the target's heads are edited."""
        probs = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        source, target = self.rows
        tokens = query.shape[2]
        words = slice(0, text) if self.text_first else slice(tokens - text, tokens)
        image = slice(text, tokens) if self.text_first else slice(0, tokens - text)
        is_single = site >= self.singles
        heads = query.shape[1]
        if is_single and self.on_map:
            for head in range(heads):
                block = probs[target, head, image, words].clone()
                probs[target, head, image, words] = stressed(block, self.alpha, self.upsilon)
        out = probs @ value
        weights = ranked([cosine(out[source, h], out[target, h]) for h in range(heads)])
        for head, rank in enumerate(weights):
            out[target, head] *= 1 + self.gamma * sigmoid(rank - self.delta)
        if is_single and not self.on_map:
            for head in range(heads):
                out[target, head, image] = stressed(
                    out[target, head, image], self.alpha, self.upsilon
                )
        return out

    @contextmanager
    def inside(self, pipe: Any) -> Generator[None]:
        """Let the transformer of a pipeline run with it; latents have 64 image tokens."""
        native, now = F.scaled_dot_product_attention, _Place()

        def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
            if not now.is_edited or query.shape[2] == 64:
                return native(query, key, value, *args, **kw)
            now.site += 1
            return self.attend(query, key, value, now.site - 1, now.text)

        def opened(module: Any, args: Any, kwargs: Any) -> None:
            now.site, now.text = 0, kwargs["encoder_hidden_states"].shape[1]
            now.is_edited = now.calls % self.period == 0
            now.calls += 1

        def closed(module: Any, args: Any, kwargs: Any, out: Any) -> None:
            now.is_edited = False

        model = pipe.transformer
        handles = [
            model.register_forward_pre_hook(opened, with_kwargs=True),
            model.register_forward_hook(closed, with_kwargs=True),
            *(b.register_forward_hook(self._blended(now), with_kwargs=True)
              for b in model.transformer_blocks[:-1]),
        ]  # fmt: skip
        F.scaled_dot_product_attention = attention
        try:
            yield
        finally:
            F.scaled_dot_product_attention = native
            for handle in handles:
                handle.remove()

    def _blended(self, now: _Place) -> Any:
        def blend(block: Any, args: Any, kwargs: Any, out: Any) -> Any:
            text = out[0].clone()
            for row in self.rows if self.blends_source else self.rows[1:]:
                if now.is_edited:
                    given = kwargs["encoder_hidden_states"][row]
                    text[row] = (1 - self.blend) * out[0][row] + self.blend * given
            return text, out[1]

        return blend


@dataclass
class _Place:
    site: int = 0
    text: int = 0
    calls: int = 0
    is_edited: bool = False
