"""DiTCtrl written plainly, in float64: no code of the library's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FORBIDDEN = torch.finfo(torch.float32).min


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention ``(..., Q, D)`` with the whole map."""
    return probabilities(query, key, bias) @ value.double()


def probabilities(query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor:
    """The map ``(..., Q, K)``."""
    scores = query.double() @ key.double().mT * query.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1)


def word_map(maps: Sequence[Tensor], words: Sequence[int], grid: tuple[int, int, int]) -> Tensor:
    """Mean over layers of head-averaged attention of image tokens to words, ``(F, h, w)``.

    Args:
        maps: Of each layer so far, ``(H, N, T)``.
        words: Token positions.
        grid: Frames, height and width of the image tokens.
    """
    mean = torch.stack([one.mean(0) for one in maps]).mean(0)
    return mean[:, list(words)].sum(-1).reshape(grid)


def foreground(word_map: Tensor, threshold: float) -> Tensor:
    """Frame by frame, cell by cell: bool ``(N,)``."""
    found: list[bool] = []
    for frame in word_map.tolist():
        cells = [cell for row in frame for cell in row]
        low, high = min(cells), max(cells)
        found += [(cell - low) / (high - low + 1e-6) >= threshold for cell in cells]
    return torch.tensor(found)


def masked(
    query: Tensor, key: Tensor, value: Tensor, image: slice, of_source: Tensor, of_target: Tensor
) -> Tensor:
    """Foreground and background, each for all tokens with an additive bias, then picked from."""
    tokens = query.shape[-2]
    parts: list[Tensor] = []
    for kept in (of_source, ~of_source):
        bias = torch.zeros(tokens, tokens, dtype=torch.float64)
        positions = range(tokens)[image]
        for place in positions:
            for number, seen in zip(positions, kept.tolist(), strict=True):
                bias[place, number] = 0.0 if seen else FORBIDDEN
        parts.append(attention(query, key, value, bias))
    out = parts[0].clone()
    for number, place in enumerate(range(tokens)[image]):
        out[..., place, :] = parts[0 if of_target[number] else 1][..., place, :]
    return out


def blended(tiles: Tensor, starts: Sequence[int], axis: int) -> Tensor:
    """Weighted mean of tiles ``(tiles, ...)``, one frame at a time."""
    length = tiles.shape[axis]
    frames: list[Tensor] = []
    for frame in range(max(starts) + length):
        total, weights = torch.zeros(()), 0.0
        for tile, start in zip(tiles.double(), starts, strict=True):
            place = frame - start
            if 0 <= place < length:
                rising = (place + 0.5) * 2 / length
                weight = min(rising, 2 - rising)
                total = total + weight * tile.select(axis - 1, place)
                weights += weight
        frames.append(total / weights)
    return torch.stack(frames, axis - 1)[None]
