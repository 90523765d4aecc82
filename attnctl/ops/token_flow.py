"""Attention outputs of keyframes, spread to the frames around them by the source's own features.

Source: Geyer et al., "TokenFlow", ICLR 2024, arXiv 2307.10373, section 4.2, equations 3 and 4.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.shuffle import keyed_permutation


def draw_keyframes(frames: int, chunk: int, *key: int | str) -> list[int]:
    """Draw one keyframe of each chunk; equal keys draw the same ones.

    Args:
        frames: Of the clip.
        chunk: Frames of a chunk; the last one may be shorter.
        key: What the draw depends on, such as a seed and the step.
    """
    starts = range(0, frames, chunk)
    sizes = [min(chunk, frames - start) for start in starts]
    return [
        start + int(keyed_permutation(size, *key, start)[0])
        for start, size in zip(starts, sizes, strict=True)
    ]


def nearest_tokens(tokens: Tensor, among: Tensor) -> Tensor:
    """Find the token of another frame that is most alike, by the cosine of the angle.

    Args:
        tokens: ``(n, C)``.
        among: ``(m, C)``.

    Returns:
        ``(n,)``, positions in ``among``.
    """
    unit, others = (F.normalize(t.float(), dim=-1) for t in (tokens, among))
    return (unit @ others.mT).argmax(dim=-1)


def chunk_weight(frame: int, own: int, chunk: int) -> float:
    """Weight of the own keyframe against the one of the chunk before.

    ``sigmoid(d_before / (d_own + d_before))`` with distances to the middles of the two chunks.

    Args:
        frame: The frame.
        own: Number of its chunk, from 1.
        chunk: Frames of a chunk.
    """
    middle = own * chunk + (chunk - 1) / 2
    to_own, to_before = abs(frame - middle), abs(frame - (middle - chunk))
    return float(torch.sigmoid(torch.tensor(to_before / (to_own + to_before))))


def spread_outputs(
    outputs: Tensor, features: Tensor, keyframes: Sequence[int], chunk: int
) -> Tensor:
    """Give every frame the outputs of its keyframes, where its source looks alike.

    Args:
        outputs: Attention outputs of the keyframes, ``(clips, H, J, n, D)``.
        features: Of the source clip, ``(F, n, C)``.
        keyframes: Their J frames, one for each chunk.
        chunk: Frames of a chunk.

    Returns:
        ``(clips, H, F, n, D)``. Keyframes keep their own outputs; a frame of the first chunk has
        those of its keyframe alone, later ones a mean with those of the chunk before.
    """
    spread: list[Tensor] = []
    for frame in range(len(features)):
        own = frame // chunk
        if frame == keyframes[own]:
            spread.append(outputs[:, :, own])
            continue
        near = nearest_tokens(features[frame], features[keyframes[own]])
        made = outputs[:, :, own][:, :, near]
        if own:
            before = nearest_tokens(features[frame], features[keyframes[own - 1]])
            weight = chunk_weight(frame, own, chunk)
            made = torch.lerp(outputs[:, :, own - 1][:, :, before], made, weight)
        spread.append(made)
    return torch.stack(spread, dim=2)
