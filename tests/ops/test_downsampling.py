"""Down-sampled keys against loops over single tokens, and their invariants."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnctl.ops.downsampling import METHODS, downsample_mask, downsample_tokens

SIZES = [(8, 8, 2), (7, 10, 2), (9, 6, 3), (5, 11, 4), (4, 4, 4)]


def places(side: int, factor: int, method: str) -> list[list[tuple[int, float]]]:
    """For each coarse place on an axis, the fine places and weights that it is made of."""
    count = side // factor
    step = side / count
    if method == "nearest":
        return [[(math.floor(i * step), 1.0)] for i in range(count)]
    if method == "nearest-exact":
        return [[(math.floor((i + 0.5) * step), 1.0)] for i in range(count)]
    if method == "average":
        return [[(i * factor + j, 1 / factor) for j in range(factor)] for i in range(count)]
    found = []
    for i in range(count):
        middle = max(0.0, (i + 0.5) * step - 0.5)
        low = math.floor(middle)
        share = middle - low
        found.append([(low, 1 - share), (min(low + 1, side - 1), share)])
    return found


def coarse_by_loops(tokens: Tensor, height: int, width: int, factor: int, method: str) -> Tensor:
    """One frame ``(h * w, D)`` in float64."""
    rows, columns = places(height, factor, method), places(width, factor, method)
    out = []
    for down in rows:
        for across in columns:
            terms = [wy * wx * tokens[y * width + x].double() for y, wy in down for x, wx in across]
            out.append(sum(terms[1:], terms[0]))
    return torch.stack(out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES)
def test_sampling_equals_loops_on_grids_of_any_shape(
    size: tuple[int, int, int], method: str
) -> None:
    height, width, factor = size
    torch.manual_seed(height)
    before, frames, after = 3, 2, 4
    image = slice(before, before + frames * height * width)
    values = torch.randn(2, 3, image.stop + after, 5)
    ours = downsample_tokens(values, image, height, width, factor, method)
    coarse = (height // factor) * (width // factor)
    assert ours.shape == (2, 3, before + frames * coarse + after, 5)
    assert torch.equal(ours[:, :, :before], values[:, :, :before])
    assert torch.equal(ours[:, :, -after:], values[:, :, -after:])
    for frame in range(frames):
        fine = values[1, 2, before + frame * height * width :][: height * width]
        expected = coarse_by_loops(fine, height, width, factor, method)
        got = ours[1, 2, before + frame * coarse :][:coarse]
        assert torch.allclose(got.double(), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_factor_one_changes_no_bit(method: str) -> None:
    values = torch.randn(1, 2, 35, 4)
    assert torch.equal(downsample_tokens(values, slice(0, 35), 5, 7, 1, method), values)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_a_picture_that_is_constant_on_cells_keeps_its_attention(factor: int, method: str) -> None:
    torch.manual_seed(0)
    coarse = torch.randn(2, 1, 2, 8, 4, 5, dtype=torch.float64)  # key and value
    if method == "bilinear" and factor == 3:
        factor = 4
    fine = coarse.repeat_interleave(factor, 4).repeat_interleave(factor, 5)
    key, value = fine.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)
    query = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    image = slice(0, key.shape[2])
    sampled = [
        downsample_tokens(t, image, 4 * factor, 5 * factor, factor, method) for t in (key, value)
    ]
    assert sampled[0].shape[2] == 20
    dense = F.scaled_dot_product_attention(query, key, value)
    assert torch.allclose(F.scaled_dot_product_attention(query, *sampled), dense, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_sampling_commutes_with_a_projection(method: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 1, 42, 8, dtype=torch.float64)
    layer = torch.nn.Linear(8, 12).double()
    how = (slice(0, 42), 6, 7, 2, method)
    assert torch.allclose(
        layer(downsample_tokens(hidden, *how)), downsample_tokens(layer(hidden), *how), atol=1e-12
    )


@pytest.mark.parametrize("method", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("shape", [(48,), (4, 48), (2, 1, 1, 48), (2, 3, 4, 48), (2, 1, 4, 1)])
@pytest.mark.parametrize("is_bool", [True, False])
def test_a_mask_keeps_the_columns_of_the_kept_keys(
    method: str, shape: tuple[int, ...], is_bool: bool
) -> None:
    torch.manual_seed(0)
    mask = torch.rand(shape) < 0.6 if is_bool else torch.randn(shape)
    how = (slice(3, 45), 6, 7, 2, method)
    kept = downsample_mask(mask, *how)
    if shape[-1] == 1:
        assert torch.equal(kept, mask)
        return
    positions = torch.arange(48.0).view(1, 1, 48, 1)
    chosen = downsample_tokens(positions, *how).flatten().long()
    assert kept.dtype == mask.dtype
    assert torch.equal(kept, mask[..., chosen])
