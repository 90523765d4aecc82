"""Keys of other frames: which ones, and their share beside a frame's own."""

from __future__ import annotations

import pytest
import torch

from attnctl.ops.cross_frame import gather_frames, share_bias


@pytest.mark.parametrize("source", ["first", "previous", "both"])
def test_each_frame_gets_the_tokens_of_its_sources(source: str) -> None:
    keys = torch.randn(2, 3, 4, 5, 6)
    made = gather_frames(keys, source)
    for frame in range(4):
        first, previous = keys[:, :, 0], keys[:, :, max(0, frame - 1)]
        parts = {"first": [first], "previous": [previous], "both": [first, previous]}[source]
        assert torch.equal(made[:, :, frame], torch.cat(parts, dim=2))


def test_every_frame_gets_the_tokens_of_chosen_frames() -> None:
    keys = torch.randn(2, 3, 4, 5, 6)
    made = gather_frames(keys, (2, 0))
    for frame in range(4):
        assert torch.equal(made[:, :, frame], torch.cat([keys[:, :, 2], keys[:, :, 0]], dim=2))


def test_shares_weigh_own_keys_against_those_of_others() -> None:
    scores = torch.randn(1, 3, 2, 5, dtype=torch.float64)
    shares = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    probs = (scores + share_bias(2, 3, shares)).softmax(-1)
    for head, share in enumerate(shares.tolist()):
        weights = scores[0, head].exp() * torch.tensor([1 - share] * 2 + [share] * 3)
        assert torch.allclose(probs[0, head], weights / weights.sum(-1, keepdim=True))
