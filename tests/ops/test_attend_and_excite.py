"""Attend-and-Excite's numbers against values worked out by hand and a float64 loop."""

import math

import pytest
import torch
from torch import Tensor

from attnctl.ops.attend_and_excite import (
    gaussian_kernel,
    neglect_losses,
    sharpen,
    smooth_maps,
    step_sizes,
    subject_losses,
)

LINE = (0.21194, 0.57612, 0.21194)


def random_maps(items: int, h: int, w: int, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(items, h, w, tokens, generator=generator)).softmax(-1)


def loop_loss(item: Tensor, subject: int, first: int, end: int, smooth: bool) -> float:
    """One subject's loss, every pixel and every neighbour by hand, in float64."""
    h, w, _ = item.shape
    sharp = (100 * item[..., first:end].double()).softmax(-1)[..., subject - first]
    line = [math.exp(-1), 1.0, math.exp(-1)]
    best = -math.inf
    for y in range(h):
        for x in range(w):
            value = float(sharp[y, x])
            if smooth:
                value = sum(
                    line[dy + 1]
                    * line[dx + 1]
                    * float(sharp[_reflect(y + dy, h), _reflect(x + dx, w)])
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                ) / (sum(line) ** 2)
            best = max(best, value)
    return max(0.0, 1 - best)


def _reflect(index: int, size: int) -> int:
    if size == 1:
        return 0
    return -index if index < 0 else 2 * (size - 1) - index if index >= size else index


def test_the_kernel_has_the_official_weights_and_sums_to_one() -> None:
    expected = torch.tensor(LINE)[:, None] * torch.tensor(LINE)[None, :]
    assert (gaussian_kernel(3, 0.5) - expected).abs().max() < 1e-5
    for size, sigma in ((1, 0.5), (5, 1.3), (7, 0.2)):
        assert abs(gaussian_kernel(size, sigma).sum().item() - 1) < 1e-6


@pytest.mark.parametrize(("size", "sigma"), [(2, 0.5), (0, 0.5), (3, 0.0), (3, float("nan"))])
def test_an_impossible_kernel_is_refused(size: int, sigma: float) -> None:
    with pytest.raises(ValueError, match=r"kernel_size|sigma"):
        gaussian_kernel(size, sigma)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1), (2, 2), (7, 11), (3, 16, 9)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_constant_map_is_a_fixed_point_of_any_size(shape: tuple[int, ...], size: int) -> None:
    maps = torch.full(shape, 0.37)
    smooth = smooth_maps(maps, size, 0.5)
    assert smooth.shape == maps.shape
    assert (smooth - maps).abs().max() < 1e-6


def test_equal_logits_give_one_minus_one_over_the_kept_columns() -> None:
    maps = torch.full((2, 16, 16, 77), 1 / 77)
    losses = neglect_losses(maps, [[1], [5, 9]])
    assert (losses - 0.986667).abs().max() < 1e-6


def test_one_bright_pixel_gives_the_value_worked_out_by_hand() -> None:
    maps = torch.zeros(1, 16, 16, 77)
    maps[0, 7, 5, 4] = 1.0
    assert abs(neglect_losses(maps, [[4]]).item() - 0.659181) < 2e-6
    assert abs(neglect_losses(maps, [[4]], smoothing=False).item()) < 1e-6


def test_a_saturated_map_has_no_loss_and_no_gradient() -> None:
    maps = torch.zeros(1, 8, 8, 77)
    maps[..., 4] = 1.0
    maps.requires_grad_()
    loss = neglect_losses(maps, [[4]])
    assert loss.item() < 1e-6
    loss.sum().backward()
    assert maps.grad is not None
    assert maps.grad.abs().max() < 1e-6


@pytest.mark.parametrize("smoothing", [True, False])
@pytest.mark.parametrize(("h", "w"), [(6, 6), (3, 8), (1, 5), (1, 1), (2, 1)])
def test_losses_equal_the_loop_for_ragged_subjects(h: int, w: int, smoothing: bool) -> None:
    maps = random_maps(3, h, w, 12)
    subjects = [[2], [1, 5, 10], [7, 3]]
    losses = subject_losses(maps, subjects, smoothing=smoothing)
    worst = neglect_losses(maps, subjects, smoothing=smoothing)
    for item, positions in enumerate(subjects):
        expected = [loop_loss(maps[item], s, 1, 11, smoothing) for s in positions]
        assert (losses[item] - torch.tensor(expected)).abs().max() < 5e-6
        assert abs(worst[item].item() - max(expected)) < 5e-6


def test_the_order_of_subjects_does_not_matter() -> None:
    maps = random_maps(1, 5, 5, 20)
    assert neglect_losses(maps, [[3, 8, 11]]) == neglect_losses(maps, [[11, 3, 8]])


def test_the_loss_of_a_list_is_the_largest_single_loss() -> None:
    maps = random_maps(1, 5, 7, 20)
    singles = [neglect_losses(maps, [[s]]).item() for s in (3, 8, 11)]
    assert neglect_losses(maps, [[3, 8, 11]]).item() == max(singles)


def test_only_the_most_neglected_subject_receives_gradient() -> None:
    maps = torch.zeros(1, 6, 6, 10)
    maps[0, 2, 2, 3] = 0.05
    maps[0, 4, 4, 6] = 0.01
    leaf = maps.clone().requires_grad_()
    neglect_losses(leaf, [[3, 6]], smoothing=False).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad[0, 4, 4, 6] < 0
    assert (leaf.grad[0, 2, 2] == 0).all()


def test_items_do_not_touch_each_other() -> None:
    maps = random_maps(2, 4, 6, 9)
    both = neglect_losses(maps, [[2, 3], [5]])
    assert both[0] == neglect_losses(maps[:1], [[2, 3]])[0]
    assert both[1] == neglect_losses(maps[1:], [[5]])[0]


def test_each_item_may_end_its_words_elsewhere() -> None:
    maps = random_maps(2, 4, 4, 12)
    both = neglect_losses(maps, [[2], [5]], last=[4, 9])
    assert both[0] == neglect_losses(maps[:1], [[2]], last=4)[0]
    assert abs(both[1].item() - loop_loss(maps[1], 5, 1, 9, True)) < 5e-6


def test_an_item_without_subjects_has_no_loss_and_a_gradient_of_zero() -> None:
    maps = random_maps(2, 4, 4, 12).requires_grad_()
    losses = neglect_losses(maps, [[], [3]])
    assert losses[0] == 0
    (gradient,) = torch.autograd.grad(losses.sum(), maps)
    assert (gradient[0] == 0).all()
    (nothing,) = torch.autograd.grad(neglect_losses(maps, [[], []]).sum(), maps)
    assert (nothing == 0).all()


def test_a_gradient_step_lowers_the_loss() -> None:
    logits = torch.randn(1, 6, 6, 12, generator=torch.Generator().manual_seed(5)).requires_grad_()
    before = neglect_losses(logits.softmax(-1), [[3, 7]])
    (gradient,) = torch.autograd.grad(before.sum(), logits)
    after = neglect_losses((logits - 0.01 * gradient).softmax(-1), [[3, 7]])
    assert after.item() < before.item()


def test_gradients_agree_with_finite_differences() -> None:
    logits = torch.randn(1, 3, 4, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: neglect_losses(x.softmax(-1) / 10, [[2, 4]]), (logits,), atol=1e-6
    )


def test_joint_maps_are_judged_by_their_share_of_the_text_mass() -> None:
    maps = random_maps(1, 5, 5, 14)
    scaled = maps * 0.03  # the rest of each row went to image keys
    plain = neglect_losses(maps, [[3]], renormalise=True)
    assert (neglect_losses(scaled, [[3]], renormalise=True) - plain).abs().max() < 1e-5
    assert (neglect_losses(scaled, [[3]]) - plain).abs().max() > 1e-2
    assert neglect_losses(torch.zeros(1, 5, 5, 14), [[3]], renormalise=True).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_judged_in_float32(dtype: torch.dtype) -> None:
    maps = random_maps(1, 5, 5, 14).to(dtype)
    losses = neglect_losses(maps, [[3]])
    assert losses.dtype == torch.float32
    assert losses.item() == neglect_losses(maps.float(), [[3]]).item()


def test_a_map_that_is_not_a_number_gives_a_loss_that_is_not() -> None:
    maps = random_maps(1, 5, 5, 14)
    maps[0, 2, 2, 4] = torch.nan
    assert neglect_losses(maps, [[3]]).isnan().all()


@pytest.mark.parametrize("position", [0, 13, 14, -1])
def test_a_subject_outside_the_kept_columns_is_refused(position: int) -> None:
    with pytest.raises(ValueError, match=rf"item 0: subject token {position} .*1 to 12 of 14"):
        neglect_losses(random_maps(1, 2, 2, 14), [[position]])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 lists"):
        neglect_losses(random_maps(1, 2, 2, 14), [[3], [4]])
    with pytest.raises(ValueError, match="keep none"):
        sharpen(torch.zeros(2, 3), first=1, last=1)
    with pytest.raises(ValueError, match="1 entries for 2 items"):
        neglect_losses(random_maps(2, 2, 2, 14), [[3], [4]], last=[9])


def test_step_sizes_run_from_twenty_to_fourteen() -> None:
    sizes = step_sizes(50)
    assert sizes.shape == (50,)
    assert sizes[0] == 20
    assert abs(sizes[-1].item() - 14.142136) < 1e-6
    assert step_sizes(1).tolist() == [20.0]
    with pytest.raises(ValueError, match="at least 1 step"):
        step_sizes(0)


@pytest.mark.parametrize("seed", range(4))
def test_losses_and_gradients_equal_the_port_in_diffusers(seed: int) -> None:
    pipelines = pytest.importorskip("diffusers.pipelines.deprecated")
    port = getattr(pipelines, "StableDiffusionAttendAndExcitePipeline", None)
    if port is None:
        pytest.skip("this diffusers no longer ships the Attend-and-Excite pipeline")
    theirs = random_maps(1, 16, 16, 77, seed).requires_grad_()
    ours = theirs.detach().clone().requires_grad_()
    # The port scales its argument in place, which a leaf does not allow.
    largest = port._compute_max_attention_per_index((theirs * 1)[0], [2, 5, 9])
    expected = port._compute_loss(largest)
    loss = neglect_losses(ours, [[2, 5, 9]])[0]
    assert abs(loss.item() - expected.item()) < 1e-6
    (wanted,) = torch.autograd.grad(expected, theirs)
    (got,) = torch.autograd.grad(loss, ours)
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
