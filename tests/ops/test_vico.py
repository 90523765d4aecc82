"""Vico's numbers: paths through attention against a loop, the invariants, the loss, Adam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attnctl.ops.adam import adam_step
from attnctl.ops.vico import (
    best_path,
    smooth_clips,
    smoothing_kernel,
    weakest_losses,
    word_influence,
)

FRAMES, TOKENS = 5, 7


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(*shape: int, seed: int = 0) -> Tensor:
    """Random attention: rows sum to 1."""
    return (2 * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)).softmax(-1)


def loop_path(left: Tensor, right: Tensor) -> Tensor:
    made = torch.zeros(left.shape[0], right.shape[1], dtype=left.dtype)
    for i in range(left.shape[0]):
        for j in range(right.shape[1]):
            made[i, j] = max(
                min(float(left[i, k]), float(right[k, j])) for k in range(right.shape[0])
            )
    return made


def test_paths_equal_the_loop() -> None:
    left, right = maps(3, FRAMES, FRAMES), maps(3, FRAMES, TOKENS, seed=1)
    for one in range(3):
        assert torch.equal(best_path(left, right)[one], loop_path(left[one], right[one]))


def test_the_identity_and_permutations_pass_maps_on() -> None:
    cross = maps(FRAMES, TOKENS)
    order = torch.randperm(FRAMES, generator=seeded())
    swap = torch.eye(FRAMES, dtype=torch.float64)[order]
    assert torch.equal(best_path(torch.eye(FRAMES, dtype=torch.float64), cross), cross)
    assert torch.equal(best_path(swap, cross), cross[order])
    assert torch.equal(best_path(swap, cross), swap @ cross)


def test_a_path_is_no_wider_than_its_parts_and_grows_with_every_one() -> None:
    left, right = maps(FRAMES, FRAMES), maps(FRAMES, TOKENS, seed=1)
    wide = best_path(left, right)
    assert wide.max() <= min(left.max(), right.max())
    for place in range(left.numel()):
        more = left.clone()
        more.view(-1)[place] += 0.3
        assert (best_path(more, right) >= wide).all()


@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.001])
def test_soft_paths_come_within_their_bound_of_hard_ones(temperature: float) -> None:
    left, right = maps(2, FRAMES, FRAMES), maps(2, FRAMES, TOKENS, seed=1)
    gap = best_path(left, right, temperature) - best_path(left, right)
    assert gap.abs().max() <= temperature * (math.log(2) + math.log(FRAMES))
    assert gap.abs().max() > 0


def test_soft_paths_equal_the_formula() -> None:
    left, right = maps(2, FRAMES, FRAMES), maps(2, FRAMES, TOKENS, seed=1)
    narrow = -0.05 * torch.log(
        torch.exp(-left[..., None] / 0.05) + torch.exp(-right[..., None, :, :] / 0.05)
    )
    by_hand = 0.05 * torch.log(torch.exp(narrow / 0.05).sum(-2))
    assert torch.allclose(best_path(left, right, 0.05), by_hand, atol=1e-9)


def test_influence_goes_through_half_identity_layers_in_their_order() -> None:
    cross = maps(2, FRAMES, TOKENS)
    first, second = maps(2, FRAMES, FRAMES, seed=1), maps(2, FRAMES, FRAMES, seed=2)
    for one in range(2):
        halves = [(m[one] + torch.eye(FRAMES)) / 2 for m in (first, second)]
        hard = loop_path(loop_path(halves[1], halves[0]), cross[one])
        assert torch.equal(word_influence(cross, [first, second], "hard")[one], hard)
        product = halves[1] @ halves[0] @ cross[one]
        rollout = word_influence(cross, [first, second], "rollout")[one]
        assert torch.allclose(rollout, product, atol=1e-12)
    soft = word_influence(cross, [first, second], "soft", 1e-4)
    assert (soft - word_influence(cross, [first, second], "hard")).abs().max() < 1e-3


def test_a_frame_keeps_at_least_half_of_its_own() -> None:
    cross = maps(4, FRAMES, TOKENS)
    layers = [maps(4, FRAMES, FRAMES, seed=s) for s in (1, 2)]
    flow = word_influence(cross, layers, "hard")
    assert (flow >= cross.clamp_max(0.5)).all()


def test_frames_that_look_at_themselves_alone_leave_cross_attention_as_it_is() -> None:
    cross = maps(4, FRAMES, TOKENS)
    alone = torch.eye(FRAMES, dtype=torch.float64).expand(4, -1, -1)
    assert torch.equal(word_influence(cross, [alone, alone], "hard"), cross)
    still = maps(4, 1, TOKENS)
    assert torch.equal(word_influence(still, [torch.ones(4, 1, 1)] * 2, "hard"), still)


def test_uniform_temporal_attention_carries_a_word_to_every_frame() -> None:
    cross = torch.zeros(4, FRAMES, TOKENS)
    cross[:, 2, 3] = 0.9
    uniform = torch.full((4, FRAMES, FRAMES), 1 / FRAMES)
    flow = word_influence(cross, [uniform, uniform], "hard")
    assert (flow[..., 3] >= 1 / (2 * FRAMES) - 1e-7).all()
    assert (flow[..., :3] == 0).all()


@pytest.mark.parametrize("form", ["soft", "hard", "rollout"])
def test_positions_do_not_mix(form: str) -> None:
    cross = maps(6, FRAMES, TOKENS)
    layers = [maps(6, FRAMES, FRAMES, seed=s) for s in (1, 2)]
    order = torch.randperm(6, generator=seeded())
    moved = word_influence(cross[order], [layer[order] for layer in layers], form)
    assert torch.equal(moved, word_influence(cross, layers, form)[order])


def test_the_kernel_sums_to_one_and_has_the_official_weights() -> None:
    kernel = smoothing_kernel()
    line = torch.tensor([math.exp(-1), 1.0, math.exp(-1)])
    line = line / line.sum()
    assert abs(kernel.sum().item() - 1) < 1e-6
    assert torch.allclose(kernel, line[:, None, None] * line[:, None] * line, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 4), (2, 2, 2), (2, 4, 5, 6)])
def test_a_constant_map_is_a_fixed_point_of_any_size(shape: tuple[int, ...]) -> None:
    constant = torch.full(shape, 0.37)
    assert smooth_clips(constant).shape == shape
    assert (smooth_clips(constant) - constant).abs().max() < 1e-6


def test_smoothing_equals_the_loop_with_reflected_borders() -> None:
    def reflect(index: int, size: int) -> int:
        return -index if index < 0 else 2 * (size - 1) - index if index >= size else index

    clip = torch.rand(3, 4, 5, generator=seeded(), dtype=torch.float64)
    line = [math.exp(-1), 1.0, math.exp(-1)]
    for t, y, x in ((0, 0, 0), (1, 2, 3), (2, 3, 4), (2, 0, 2)):
        expected = sum(
            line[a + 1] * line[b + 1] * line[c + 1]
            * float(clip[reflect(t + a, 3), reflect(y + b, 4), reflect(x + c, 5)])
            for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)
        ) / sum(line) ** 3  # fmt: skip
        assert abs(float(smooth_clips(clip)[t, y, x]) - expected) < 1e-6


def test_the_loss_is_that_of_the_weakest_subject_among_the_words_alone() -> None:
    flow = 0.03 * torch.rand(2, 3, 4, 4, 9, generator=seeded())
    flow[0, 1, 2, 2, 2] = 0.2
    flow[..., 0] = flow[..., 8] = 5.0  # BOS, and the end of the text: they do not compete
    losses = weakest_losses(flow, [[2, 5, 3], [1, 6]], [(1, 8), (1, 7)])
    for item, (subjects, end) in enumerate((([2, 5, 3], 8), ([1, 6], 7))):
        sharp = (100 * flow[item, ..., 1:end]).softmax(-1)
        single = [1 - smooth_clips(sharp[..., s - 1]).max() for s in subjects]
        assert torch.allclose(losses[item], torch.stack(single).max(), atol=1e-6)
    assert (losses > 0).all()
    assert (losses < 1).all()


def test_a_loss_lies_between_nothing_and_everything() -> None:
    full = torch.zeros(1, 2, 3, 3, 4)
    full[..., 0, 1], full[..., 2, 2] = 1.0, 1.0
    assert 0 <= weakest_losses(full, [[1, 2]], [(1, 4)]).item() < 1
    starved = torch.zeros(1, 2, 3, 3, 4)
    starved[..., 1] = 1.0
    assert weakest_losses(starved, [[1, 2]], [(1, 4)]).item() == pytest.approx(1)


def test_one_subject_has_no_rival_and_no_gradient() -> None:
    flow = torch.rand(2, 2, 3, 3, 6, generator=seeded()).requires_grad_()
    losses = weakest_losses(flow, [[2], [2, 3]], [(1, 5), (1, 5)])
    losses.sum().backward()
    assert losses[0] == 0
    assert flow.grad is not None
    assert not flow.grad[0].any()
    assert flow.grad[1].any()


def test_a_subject_that_is_no_word_is_refused() -> None:
    with pytest.raises(ValueError, match="token 5 is not among the kept token columns"):
        weakest_losses(torch.zeros(1, 2, 3, 3, 6), [[2, 5]], [(1, 5)])


def test_gradients_of_both_flows_equal_finite_differences() -> None:
    cross, layer = maps(2, 3, 4), maps(2, 3, 3, seed=1)
    for form in ("soft", "hard", "rollout"):
        inputs = (cross.clone().requires_grad_(), layer.clone().requires_grad_())
        assert torch.autograd.gradcheck(
            lambda c, t, form=form: word_influence(c, [t, t], form), inputs
        )


def test_adam_equals_that_of_torch_and_leaves_items_without_gradient_alone() -> None:
    latents = torch.randn(3, 2, 4, generator=seeded())
    theirs = latents.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=0.03, eps=1e-7)
    ours, first, second = latents.clone(), torch.zeros_like(latents), torch.zeros_like(latents)
    for count in range(1, 5):
        gradient = torch.randn(3, 2, 4, generator=seeded(count))
        gradient[2] = 0
        theirs.grad = gradient.clone()
        optimiser.step()
        step, first, second = adam_step(gradient, first, second, count, 0.03)
        ours = ours - step
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.equal(ours[2], latents[2])
    stopped, *_ = adam_step(torch.zeros_like(latents), first, second, 5, 0.03)
    assert not stopped.any()
