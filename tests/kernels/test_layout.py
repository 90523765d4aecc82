"""Block layouts: cut a mask into blocks and expand it again, compare, refuse what cannot be."""

import pytest
import torch
from torch import Tensor

from attnctl.kernels import Band, Bitmask, BlockLayout, SameId

SIZES = [(200, 130, 64, 32), (64, 64, 64, 64), (17, 100, 16, 8), (1, 1, 8, 8)]


def mixed_mask(batch: int, heads: int, sizes: tuple[int, int, int, int]) -> Tensor:
    """Draw a mask with full, partial and empty blocks, and one row without a key."""
    q_tokens, k_tokens, q_block, k_block = sizes
    blocks = (batch, heads, -(-q_tokens // q_block), -(-k_tokens // k_block))

    def spread(choice: Tensor) -> Tensor:
        wide = choice.repeat_interleave(q_block, 2).repeat_interleave(k_block, 3)
        return wide[:, :, :q_tokens, :k_tokens]

    kept, whole = (spread(torch.rand(blocks) < share) for share in (0.6, 0.5))
    mask = kept & (whole | (torch.rand(batch, heads, q_tokens, k_tokens) < 0.8))
    mask[0, 0, q_tokens // 2] = False
    return mask


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_cutting_and_expanding_gives_the_mask_back(
    batch: int, heads: int, sizes: tuple[int, int, int, int]
) -> None:
    mask = mixed_mask(batch, heads, sizes)
    layout = BlockLayout.from_element_mask(mask, sizes[2], sizes[3])
    assert torch.equal(layout.element_mask(), mask)
    assert layout.kept_share == pytest.approx(mask.double().mean().item())
    assert layout.full_count.shape[:2] == (batch, heads)


def test_whole_blocks_come_from_a_block_mask() -> None:
    chosen = torch.tensor([[True, False, True], [False, False, False]])
    layout = BlockLayout.from_block_mask(chosen, 16, 8, 20, 21)
    expected = chosen.repeat_interleave(16, 0).repeat_interleave(8, 1)[:20, :21]
    assert torch.equal(layout.element_mask()[0, 0], expected)
    assert layout.rule is None
    assert layout.density == pytest.approx(2 / 6)


@pytest.mark.parametrize("band", [Band(10), Band(3, text=7), Band(2, text=5, group=4), Band(0)])
@pytest.mark.parametrize("order", [None, "shuffled"])
def test_a_band_equals_its_definition(band: Band, order: str | None) -> None:
    tokens = 150
    shuffled = None if order is None else torch.randperm(tokens)
    layout = BlockLayout.from_pattern(band, tokens, q_block=32, k_block=16, order=shuffled)
    position = torch.arange(tokens) if shuffled is None else shuffled.argsort()
    expected = torch.zeros(tokens, tokens, dtype=torch.bool)
    for i in range(tokens):
        for j in range(tokens):
            p, q = int(position[i]), int(position[j])
            text = p < band.text or q < band.text
            far = abs((p - band.text) // band.group - (q - band.text) // band.group)
            expected[i, j] = text or far <= band.half_width
    assert torch.equal(layout.element_mask()[0, 0], expected)
    assert layout.kept_share == pytest.approx(expected.double().mean().item())


def test_equal_numbers_attend_to_each_other() -> None:
    ids = torch.randint(0, 5, (90,))
    layout = BlockLayout.from_pattern(SameId(ids, ids), 90, q_block=16, k_block=32)
    assert torch.equal(layout.element_mask()[0, 0], ids[:, None] == ids)
    assert layout.kept_share == pytest.approx((ids[:, None] == ids).double().mean().item())


@pytest.mark.parametrize("blocks", [(16, 16), (32, 8), (8, 64)])
@pytest.mark.parametrize("band", [Band(10), Band(3, text=7), Band(2, text=40, group=4), Band(0)])
def test_blocks_of_a_band_are_known_without_its_pairs(band: Band, blocks: tuple[int, int]) -> None:
    layout = BlockLayout.from_pattern(band, 100, 130, *blocks)
    looked_at = BlockLayout.from_pattern(band.allowed, 100, 130, *blocks)
    assert torch.equal(layout.element_mask(), looked_at.element_mask())
    assert torch.equal(layout.full_index, looked_at.full_index)
    assert torch.equal(layout.partial_index, looked_at.partial_index)


def test_blocks_of_rising_numbers_are_known_without_their_pairs() -> None:
    ids = torch.randint(0, 20, (150,)).sort().values
    layout = BlockLayout.from_pattern(SameId(ids, ids), 150, q_block=16, k_block=32)
    looked_at = BlockLayout.from_pattern(SameId(ids, ids).allowed, 150, q_block=16, k_block=32)
    assert torch.equal(layout.full_index, looked_at.full_index)
    assert torch.equal(layout.partial_index, looked_at.partial_index)
    assert torch.equal(layout.element_mask()[0, 0], ids[:, None] == ids)
    assert layout.kept_share == pytest.approx((ids[:, None] == ids).double().mean().item())


def test_a_pattern_counts_tokens_and_a_sorting_order_packs_it() -> None:
    lane = torch.arange(256) % 4

    def same_lane(queries: Tensor, keys: Tensor) -> Tensor:
        return lane[queries.long()] == lane[keys.long()]

    raster = BlockLayout.from_pattern(same_lane, 256, q_block=64, k_block=64)
    packed = BlockLayout.from_pattern(
        same_lane, 256, q_block=64, k_block=64, order=lane.argsort(stable=True)
    )
    assert torch.equal(raster.element_mask(), packed.element_mask())
    assert raster.density == 1.0
    assert packed.density == 0.25
    assert packed.rule is None


def test_equal_tiles_are_kept_once() -> None:
    layout = BlockLayout.from_pattern(Band(8).allowed, 64 * 20, q_block=64, k_block=64)
    assert isinstance(layout.rule, Bitmask)
    assert layout.rule.tiles.shape[0] == 3  # on the diagonal, below it, above it
    assert int(layout.partial_count.sum()) == 58


def test_layouts_are_compared_by_what_they_hold() -> None:
    made = [BlockLayout.from_pattern(Band(width), 100) for width in (5, 5, 6)]
    assert made[0] == made[1]
    assert hash(made[0]) == hash(made[1])
    assert made[0] != made[2]
    assert made[0] != BlockLayout.from_pattern(Band(5), 100, order=torch.randperm(100))
    assert made[0] != 5


def test_a_layout_on_its_own_device_is_itself() -> None:
    layout = BlockLayout.from_pattern(Band(5), 100)
    assert layout.to("cpu") is layout


@pytest.mark.gpu
def test_a_copy_on_another_device_is_equal_and_made_once() -> None:
    layout = BlockLayout.from_pattern(Band(5), 100, order=torch.randperm(100))
    copy = layout.to("cuda")
    assert copy is layout.to(copy.full_count.device)
    assert copy == layout
    assert torch.equal(copy.element_mask().cpu(), layout.element_mask())


def lists(count: list[int], index: list[list[int]]) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor([[count]], dtype=torch.int32),
        torch.tensor([[index]], dtype=torch.int32),
    )


NOTHING = (torch.zeros(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 0, dtype=torch.int32))


@pytest.mark.parametrize(
    ("full", "partial", "rule", "words"),
    [
        (lists([1, 1], [[0], [2]]), NOTHING, None, "0 to 1"),
        (lists([2, 1], [[0], [1]]), NOTHING, None, "0 to 1"),
        (lists([2, 1], [[1, 1], [1, 0]]), NOTHING, None, "twice"),
        (lists([2, 1], [[1, 0], [1, 0]]), NOTHING, None, "rising order"),
        (lists([1, 1], [[0], [1]]), lists([1, 0], [[0], [0]]), Band(1), "both lists"),
        (NOTHING, lists([1, 0], [[0], [0]]), None, "no rule"),
        (lists([1], [[0]]), NOTHING, None, "2 query blocks"),
    ],
)
def test_lists_that_cannot_be_are_refused(
    full: tuple[Tensor, Tensor], partial: tuple[Tensor, Tensor], rule: Band | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        BlockLayout(8, 8, 16, 16, *full, *partial, rule)


def test_rows_much_longer_than_the_mean_are_started_first() -> None:
    layout = BlockLayout.from_pattern(Band(8, text=20), 320, q_block=16, k_block=16)
    order = layout.program_order(2, 3)
    rows = layout.q_blocks
    assert order.dtype == torch.int32
    assert sorted(order.tolist()) == list(range(6 * rows))
    first, rest = order[:12].tolist(), order[12:].tolist()
    assert first == [head * rows + row for head in range(6) for row in (0, 1)]  # they hold text
    assert rest == sorted(rest)
    assert layout.program_order(2, 3) is order


@pytest.mark.parametrize("form", ["empty", "even"])
def test_rows_of_like_length_keep_their_order(form: str) -> None:
    mask = torch.full((4, 4), form == "even")
    layout = BlockLayout.from_block_mask(mask, 16, 16, 64, 64)
    assert torch.equal(layout.program_order(1, 2), torch.arange(8, dtype=torch.int32))


def test_mistakes_of_a_user_are_explained() -> None:
    with pytest.raises(ValueError, match="must be bool"):
        BlockLayout.from_block_mask(torch.ones(1, 1), 8, 8, 8, 8)
    with pytest.raises(ValueError, match=r"make \(2, 2\) blocks; the mask has \(1, 1\)"):
        BlockLayout.from_block_mask(torch.ones(1, 1, dtype=torch.bool), 8, 8, 16, 16)
    with pytest.raises(ValueError, match="multiple of 8"):
        BlockLayout.from_pattern(Band(1), 16, q_block=12)
    with pytest.raises(ValueError, match="permutation"):
        BlockLayout.from_pattern(Band(1), 16, 8, order=torch.arange(16))
    with pytest.raises(ValueError, match="each of 0 to 15 once"):
        BlockLayout.from_pattern(Band(1), 16, order=torch.zeros(16, dtype=torch.long))
    with pytest.raises(ValueError, match="half_width >= 0"):
        Band(-1)
    with pytest.raises(ValueError, match="ids must be integers"):
        SameId(torch.zeros(3), torch.zeros(3, dtype=torch.long))
