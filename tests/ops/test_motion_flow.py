"""MotionFlow's numbers: masks of maps against loops, the invariants, the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.ops.attend_and_excite import smooth_maps
from attnctl.ops.motion_flow import (
    mask_losses,
    merge_maps,
    motion_masks,
    resized_masks,
    scaled_frames,
)

FRAMES, SIDE = 3, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def box(shift: int = 0) -> Tensor:
    """A box of two by two cells that moves right by one cell a frame."""
    masks = torch.zeros(1, FRAMES, SIDE, SIDE, dtype=torch.bool)
    for frame in range(FRAMES):
        masks[0, frame, 1:3, frame + shift : frame + shift + 2] = True
    return masks


def looped(maps: Tensor, masks: Tensor, beta: float) -> Tensor:
    """The loss, one cell at a time."""
    losses = []
    for item in range(len(maps)):
        total = torch.zeros((), dtype=torch.float64)
        for frame, mask in zip(maps[item], masks[item], strict=True):
            low, high = frame.min(), frame.max()
            inside = outside = entropy = torch.zeros((), dtype=torch.float64)
            for q, m in zip(frame.flatten(), mask.flatten(), strict=True):
                scaled = (q - low) / (high - low)
                inside, outside = inside + scaled * m, outside + scaled * ~m
                likely = scaled if m else 1 - scaled
                entropy = entropy - likely.clamp_min(2.220446049250313e-16).log()
            total = total + (1 - inside / (inside + outside)) ** 2 + beta * entropy / mask.numel()
        losses.append(total / len(maps[item]))
    return torch.stack(losses)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_loss_equals_the_loop(beta: float) -> None:
    maps, masks = draw(2, FRAMES, SIDE, SIDE), draw(2, FRAMES, SIDE, SIDE, seed=1) > 0.6
    assert torch.allclose(mask_losses(maps, masks, beta), looped(maps, masks, beta), atol=1e-12)


def test_a_mask_of_everything_has_no_loss_and_no_gradient() -> None:
    maps = draw(1, FRAMES, SIDE, SIDE).requires_grad_()
    loss = mask_losses(maps, torch.ones_like(maps, dtype=torch.bool))
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert maps.grad is not None
    assert not maps.grad.any()


def test_an_empty_mask_has_the_loss_one_and_no_gradient() -> None:
    maps = draw(1, FRAMES, SIDE, SIDE).requires_grad_()
    loss = mask_losses(maps, torch.zeros_like(maps, dtype=torch.bool))
    loss.sum().backward()
    assert float(loss.detach()) == 1
    assert maps.grad is not None
    assert not maps.grad.any()


def test_the_loss_lies_between_zero_and_one_whatever_the_scale_of_the_map() -> None:
    maps, masks = draw(4, FRAMES, SIDE, SIDE), draw(4, FRAMES, SIDE, SIDE, seed=1) > 0.5
    losses = mask_losses(maps, masks)
    assert ((losses > 0) & (losses < 1)).all()
    assert torch.allclose(mask_losses(1e-3 * maps, masks), losses, atol=1e-12)


def test_a_point_has_no_loss_exactly_where_the_mask_is() -> None:
    for shift in (0, 2):
        for place in range(SIDE * SIDE):
            point = torch.zeros(1, FRAMES, SIDE * SIDE)
            point[..., place] = 1
            loss = mask_losses(point.unflatten(2, (SIDE, SIDE)), box(shift))
            hits = sum(bool(box(shift)[0, f].flatten()[place]) for f in range(FRAMES))
            assert float(loss) == pytest.approx((FRAMES - hits) / FRAMES)


def test_frames_count_apart() -> None:
    maps = draw(1, FRAMES, SIDE, SIDE).requires_grad_()
    whole = mask_losses(maps, box())
    alone = torch.stack([mask_losses(maps[:, f, None], box()[:, f, None]) for f in range(FRAMES)])
    assert torch.allclose(alone.mean(0), whole)
    alone[1].sum().backward()
    assert maps.grad is not None
    assert maps.grad[0, 1].any()
    assert not maps.grad[0, [0, 2]].any()


def test_equal_maps_stay_finite() -> None:
    maps = torch.full((1, FRAMES, SIDE, SIDE), 0.2, requires_grad=True)
    loss = mask_losses(maps, box(), beta=0.5)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert maps.grad is not None
    assert not maps.grad.any()
    assert not scaled_frames(maps).any()
    assert not motion_masks(maps).any()


def test_small_steps_lower_the_loss_of_a_linear_map() -> None:
    weights = 4 * draw(SIDE * SIDE, 5, seed=2) - 2
    leaf = torch.zeros(FRAMES, 5, dtype=torch.float64, requires_grad=True)
    seen: list[float] = []
    for _ in range(6):
        maps = (leaf @ weights.T + 0.1 * draw(FRAMES, SIDE * SIDE)).softmax(-1)
        loss = mask_losses(maps.view(1, FRAMES, SIDE, SIDE), box()).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        leaf = (leaf - 0.05 * gradient).detach().requires_grad_()
        seen.append(float(loss.detach()))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < seen[0]


def test_masks_are_the_cells_above_the_threshold_of_each_scaled_frame() -> None:
    maps = torch.rand(2, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([1.0, 0.01, 5.0]).view(1, FRAMES, 1, 1)
    masks = motion_masks(maps * scale, 0.5)
    for item in range(2):
        for frame in range(FRAMES):
            one = maps[item, frame]
            scaled = smooth_maps((one - one.min()) / (one.max() - one.min()))
            assert torch.equal(masks[item, frame], scaled > 0.5)
    sharp = motion_masks(maps, 0.5, smoothing=False)
    assert torch.equal(sharp, scaled_frames(maps) > 0.5)


def test_otsu_finds_a_bright_box_in_every_frame() -> None:
    maps = 0.1 * torch.rand(1, FRAMES, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    maps = (maps + box()) * torch.tensor([1.0, 0.1, 7.0]).view(1, FRAMES, 1, 1)
    assert torch.equal(motion_masks(maps, smoothing=False), box())


def test_a_token_without_a_map_changes_nothing() -> None:
    columns = draw(2, 1, FRAMES, SIDE, SIDE)
    with_nothing = torch.stack([columns[0], 0 * columns[1]]).sum(0)
    assert torch.equal(motion_masks(with_nothing), motion_masks(columns[0]))


def test_layers_of_all_sizes_count_equally() -> None:
    fine, coarse = draw(2, FRAMES, SIDE, SIDE), draw(2, FRAMES, 3, 3, seed=1)
    merged = merge_maps([fine, coarse, fine], (SIDE, SIDE))
    wide = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    assert torch.allclose(merged, (2 * fine + wide) / 3)
    assert torch.equal(merge_maps([fine], (SIDE, SIDE)), fine)
    assert merge_maps([fine.bfloat16()], (SIDE, SIDE)).dtype == torch.float32


def test_masks_of_pictures_come_down_by_the_area_they_cover() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, :2, :1] = True  # half of a cell
    masks[1, 3, 3] = True  # a quarter of one
    assert resized_masks(masks, (2, 2)).tolist() == [
        [[True, False], [False, False]],
        [[False, False], [False, False]],
    ]
    assert torch.equal(resized_masks(masks, (4, 4)), masks)
