"""Whether public code and ours give the same at the same settings, where definitions agree."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attnctl.bench.networks import random_inputs
from attnctl.bench.sparse.conditions import Way, build_techniques
from attnctl.bench.sparse.peers import blocks_of

SIDE = 32
"""Side of the latents in cells."""
TOLERANCE = 1e-2
"""Largest difference that counts as equal, as a share of the effect of the technique."""


def measure_agreement(pipe: Any, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Run one step of public code and of ours on the same inputs.

    Public code that looks for alike tokens before the first norm of a block is compared on blocks
    without that norm, where both look at the same tokens; the definitions differ there alone.

    Args:
        pipe: Pipeline around a U-Net.
        ways: Those with public code are compared with the way of ours that names the same.

    Returns:
        Plain values: the largest difference of the latents, and the effect of the technique.
    """
    by_name = {way.name: way for way in ways}
    found: list[dict[str, Any]] = []
    for way in ways:
        if way.peer is None or way.peer.why_not(pipe) is not None:
            continue
        norms = not way.peer.compares_before_norm
        with _norms(pipe.unet, kept=norms):
            theirs, ours = _run(pipe, way), _run(pipe, by_name[way.beside])
            plain = _run(pipe, None)
        difference = float((theirs - ours).abs().max())
        effect = float((theirs - plain).abs().max())
        found.append(
            {
                "peer": way.name,
                "ours": way.beside,
                "with_first_norms": norms,
                "largest_latent": float(plain.abs().max()),
                "largest_difference": difference,
                "effect": effect,
                "is_equal": difference <= TOLERANCE * effect,
            }
        )
    return found


def _run(pipe: Any, way: Way | None) -> Tensor:
    inputs = random_inputs(pipe, side=SIDE, steps=1, guidance=1.0)
    if way is None:
        return pipe(**inputs).images
    with way.attached(pipe, build_techniques(way)):
        return pipe(**inputs).images


@contextmanager
def _norms(unet: Any, *, kept: bool) -> Generator[None]:
    """Take the first norm of every transformer block out for the length of a block."""
    blocks = [] if kept else blocks_of(unet)
    norms = [block.norm1 for block in blocks]
    for block in blocks:
        block.norm1 = nn.Identity()
    try:
        with torch.no_grad():
            yield
    finally:
        for block, norm in zip(blocks, norms, strict=True):
            block.norm1 = norm
