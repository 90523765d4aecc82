"""Keyframes, matches and weights of TokenFlow."""

from __future__ import annotations

import math

import pytest
import torch

from attnctl.ops.token_flow import chunk_weight, draw_keyframes, nearest_tokens, spread_outputs


def test_each_chunk_has_one_keyframe_and_keys_decide_which() -> None:
    drawn = [draw_keyframes(11, 4, 0, step) for step in range(40)]
    assert drawn == [draw_keyframes(11, 4, 0, step) for step in range(40)]
    for frames in drawn:
        assert [frame // 4 for frame in frames] == [0, 1, 2]
        assert frames[-1] < 11
    assert {frames[0] for frames in drawn} == {0, 1, 2, 3}
    assert {frames[2] for frames in drawn} == {8, 9, 10}
    assert drawn != [draw_keyframes(11, 4, 1, step) for step in range(40)]


def test_the_nearest_token_has_the_smallest_angle_whatever_its_length() -> None:
    among = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.1]])
    tokens = torch.tensor([[9.0, 1.0], [0.1, 0.2], [-3.0, 0.0]])
    assert nearest_tokens(tokens, among).tolist() == [0, 1, 2]


def test_weights_follow_the_distances_to_the_middles_of_the_chunks() -> None:
    # Chunks of 4: middles 1.5, 5.5; frame 4 is 1.5 from its own and 2.5 from the one before.
    assert chunk_weight(4, 1, 4) == pytest.approx(1 / (1 + math.exp(-2.5 / 4)))
    weights = [chunk_weight(frame, 1, 4) for frame in range(4, 8)]
    assert weights[0] < weights[1]  # nearer to its own middle
    assert all(0.5 < weight < 0.74 for weight in weights)


def test_outputs_are_spread_as_plain_loops_say() -> None:
    torch.manual_seed(0)
    features, outputs = torch.randn(7, 5, 3), torch.randn(2, 2, 3, 5, 4)
    keyframes, chunk = [1, 4, 6], 3
    made = spread_outputs(outputs, features, keyframes, chunk)
    for frame in range(7):
        own = frame // chunk
        for token in range(5):
            expected = outputs[:, :, own, token]
            if frame != keyframes[own]:
                match = [
                    torch.cosine_similarity(
                        features[frame, token], features[keyframes[number]], dim=-1
                    ).argmax()
                    for number in (own, own - 1)
                ]
                expected = outputs[:, :, own, match[0]]
                if own:
                    weight = chunk_weight(frame, own, chunk)
                    before = outputs[:, :, own - 1, match[1]]
                    expected = weight * expected + (1 - weight) * before
            assert torch.allclose(made[:, :, frame, token], expected, atol=1e-6)


def test_equal_frames_take_over_the_keyframes_output() -> None:
    outputs = torch.randn(1, 2, 1, 5, 4)
    made = spread_outputs(outputs, torch.randn(1, 5, 3).expand(4, 5, 3), [2], 4)
    assert torch.equal(made, outputs.expand(1, 2, 4, 5, 4))
