"""Block layouts of every form, and inputs for them, that all sparse kernels are tested on."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnctl.kernels import Band, BlockLayout, SameId
from attnctl.ops.masked_attention import attend_masked

BATCH, HEADS = 2, 3


def _random_blocks(lists: tuple[int, int], q_tokens: int, k_tokens: int, block: int) -> BlockLayout:
    shape = (*lists, -(-q_tokens // block), -(-k_tokens // block))
    return BlockLayout.from_block_mask(torch.rand(shape) < 0.5, block, block, q_tokens, k_tokens)


def _random_elements(lists: tuple[int, int], q_tokens: int, k_tokens: int) -> BlockLayout:
    mask = torch.rand(*lists, q_tokens, k_tokens) < 0.3
    mask[:, :, :32, :32] = True
    mask[:, :, 40:70, :] = False  # rows without a key, within and across blocks
    mask[:, :, :, 64:96] = False
    return BlockLayout.from_element_mask(mask, 32, 32)


def _lanes() -> BlockLayout:
    lane = torch.arange(96) % 6
    order = lane.argsort(stable=True)
    ids = lane[order]
    return BlockLayout.from_pattern(SameId(ids, ids), 96, q_block=32, k_block=32, order=order)


LAYOUTS: dict[str, Callable[[], BlockLayout]] = {
    "one block": lambda: BlockLayout.from_pattern(Band(30), 20, 30, 32, 32),
    "all blocks, ragged": lambda: BlockLayout.from_pattern(Band(200), 100, q_block=32, k_block=32),
    "shared lists, ragged": lambda: _random_blocks((1, 1), 77, 130, 32),
    "lists a head": lambda: _random_blocks((1, HEADS), 96, 96, 16),
    "lists an item": lambda: _random_blocks((BATCH, 1), 70, 64, 32),
    "lists an item and head": lambda: _random_blocks((BATCH, HEADS), 70, 100, 32),
    "no block at all": lambda: BlockLayout.from_block_mask(
        torch.zeros(2, 2, dtype=torch.bool), 32, 32, 50, 50
    ),
    "band": lambda: BlockLayout.from_pattern(Band(9), 100, q_block=32, k_block=16),
    "band with text": lambda: BlockLayout.from_pattern(
        Band(2, text=7, group=3), 100, q_block=16, k_block=32
    ),
    "band in another order": lambda: BlockLayout.from_pattern(
        Band(9), 75, q_block=32, k_block=32, order=torch.randperm(75)
    ),
    "lanes": _lanes,
    "element masks with empty rows": lambda: _random_elements((1, 1), 100, 110),
    "element masks an item and head": lambda: _random_elements((BATCH, HEADS), 80, 120),
}


def make_inputs(
    layout: BlockLayout, width: int = 40, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Draw query, key and value as transposed views of ``(B, N, H, D)``, as diffusers has them."""
    shapes = [(BATCH, n, HEADS, width) for n in (layout.q_tokens, *[layout.k_tokens] * 2)]
    return [torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes]


def expected(layout: BlockLayout, tensors: list[Tensor], scale: float) -> tuple[Tensor, Tensor]:
    """Attend in float64 under the expanded mask."""
    wide = [tensor.double() for tensor in tensors]
    return attend_masked(wide[0], wide[1], wide[2], layout.element_mask(), scale)


def tolerance(layout: BlockLayout, tensors: list[Tensor], scale: float) -> tuple[float, float]:
    """Largest error of the plain float32 form of out and lse, with room for another order of sums.

    For half precision the rounding of its own format is added.
    """
    exact = expected(layout, tensors, scale)
    single = [tensor.float() for tensor in tensors]
    plain = attend_masked(single[0], single[1], single[2], layout.element_mask(), scale)
    pairs = zip(plain, exact, strict=True)
    errors = [float(torch.nan_to_num(a - b, nan=0.0).abs().max()) for a, b in pairs]
    dtype = tensors[0].dtype
    half = dtype in (torch.float16, torch.bfloat16)
    # Weights and result are rounded once each, values are up to |v|max.
    rounding = 2 * torch.finfo(dtype).eps * float(tensors[2].abs().max()) if half else 0.0
    smallest = 4 * torch.finfo(torch.float32).eps
    return 8 * max(errors[0], smallest) + rounding, 8 * max(errors[1], smallest)


def compare(
    found: tuple[Tensor, Tensor], layout: BlockLayout, tensors: list[Tensor], scale: float
) -> None:
    """Assert that a kernel's out and lse are the exact ones, empty rows included."""
    out, lse = found
    exact_out, exact_lse = expected(layout, tensors, scale)
    out_limit, lse_limit = tolerance(layout, tensors, scale)
    assert out.dtype == tensors[0].dtype
    assert out.shape == exact_out.shape
    assert bool(out.isfinite().all())
    assert float((out.double() - exact_out).abs().max()) <= out_limit
    empty = exact_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert bool((out[empty] == 0).all())
    error = (lse.double() - exact_lse).masked_fill(empty, 0.0).abs().max()
    assert float(error) <= lse_limit
