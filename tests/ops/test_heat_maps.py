"""Heat-map arithmetic: resizing keeps places and constants, display never divides by zero."""

import pytest
import torch

from attnctl.ops.heat_maps import normalise_display, upscale_maps


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (5, 3)])
def test_a_constant_map_stays_constant(size: tuple[int, int]) -> None:
    large = upscale_maps(torch.full((3, 4, 4), 1 / 77), size)
    assert large.shape == (3, *size)
    assert (large - 1 / 77).abs().max() < 1e-7
    assert (normalise_display(large) == 0).all()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 5), (1, 2), (0, 5)])
def test_a_single_peak_stays_at_its_place(row: int, column: int) -> None:
    maps = torch.zeros(4, 6)
    maps[row, column] = 1.0
    large = upscale_maps(maps, (32, 48))
    peak = divmod(int(large.argmax()), 48)
    assert (peak[0] // 8, peak[1] // 8) == (row, column)
    assert large.min() == 0


def test_the_same_size_changes_nothing() -> None:
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(upscale_maps(maps, (5, 7)), maps)


def test_upscaling_equals_torch_bicubic_cut_at_zero() -> None:
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) ** 8
    expected = torch.nn.functional.interpolate(
        maps.double()[:, None], size=(9, 7), mode="bicubic", align_corners=False
    )[:, 0].clamp_min(0)
    assert (upscale_maps(maps, (9, 7)) - expected).abs().max() < 1e-6


def test_display_runs_from_zero_to_one_for_each_map() -> None:
    maps = torch.stack([torch.arange(6.0).reshape(2, 3), torch.full((2, 3), 0.4)])
    shown = normalise_display(maps)
    assert torch.equal(shown[0], torch.arange(6.0).reshape(2, 3) / 5)
    assert (shown[1] == 0).all()
    assert (normalise_display(torch.zeros(1, 2, 2)) == 0).all()
    assert (normalise_display(1e-9 * maps[0]) - shown[0]).abs().max() < 1e-6


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least"):
        upscale_maps(torch.zeros(2, 2), (0, 4))
