"""RealCraft's arithmetic: new words in a map, the cells of an object, and what is free there."""

from __future__ import annotations

import torch
from torch import Tensor

from attnctl.ops.real_craft import object_cells, relaxed_output, with_own_columns


def maps(seed: int, batch: int = 2, queries: int = 5, keys: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, 3, queries, keys, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def test_only_the_columns_of_new_words_are_the_targets() -> None:
    source, target, value = maps(0), maps(1), torch.randn(2, 3, 7, 4, dtype=torch.float64)
    columns, is_new = [2, 5], torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ours = with_own_columns(
        source @ value, source[..., columns], target[..., columns], value[:, :, columns], is_new
    )
    for batch, new in enumerate((2, 5)):
        for head in range(3):
            for query in range(5):
                row = [
                    float((target if key == new else source)[batch, head, query, key])
                    for key in range(7)
                ]
                truth = sum(p * v for p, v in zip(row, value[batch, head], strict=True))
                assert torch.allclose(ours[batch, head, query], truth, atol=1e-12)


def test_without_a_new_word_the_sources_output_is_kept_bit_for_bit() -> None:
    source, target, value = maps(0), maps(1), torch.randn(2, 3, 7, 4, dtype=torch.float64)
    kept = source @ value
    parts = (source[..., :2], target[..., :2], value[:, :, :2])
    assert torch.equal(with_own_columns(kept, *parts, torch.zeros(2, 2)), kept)
    assert not torch.equal(with_own_columns(kept, *parts, torch.ones(2, 2)), kept)


def test_the_object_is_where_the_old_word_or_the_new_one_looks() -> None:
    source, target = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    source[0, 0, 0], source[0, 0, 1] = 10.0, 2.0
    target[0, 1, 1] = 0.1
    cells = object_cells(source, target, (4, 4), 0.3).view(2, 4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = expected[2:, 2:] = True
    assert torch.equal(cells[0], expected)
    assert not cells[1].any()  # words without a map have no object
    wide = object_cells(source, target, (2, 2), 0.1).view(2, 2, 2)
    assert wide[0].tolist() == [[True, True], [False, True]]
    assert object_cells(source, target, (1, 2), 0.3)[0].tolist() == [True, True]  # a part does
    assert object_cells(source, source, (1, 2), 0.3)[0].tolist() == [True, False]


def test_each_frame_is_measured_by_its_own_maximum() -> None:
    source = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    scaled = source * torch.tensor([1.0, 50.0, 0.01]).view(3, 1, 1)
    same = object_cells(source, source, (4, 4), 0.5)
    assert torch.equal(object_cells(scaled, scaled, (4, 4), 0.5), same)
    assert torch.equal(object_cells(source[1:2], source[1:2], (4, 4), 0.5), same[1:2])


def test_outside_of_the_object_the_own_map_has_no_influence() -> None:
    kept, free = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    is_object = torch.tensor([[True, False, True, False, False], [False] * 5])
    out = relaxed_output(kept, free, is_object)
    other = relaxed_output(kept, torch.randn(2, 3, 5, 4), is_object)
    outside = ~is_object[:, None, :, None].expand_as(out)
    assert torch.equal(out[outside], kept[outside])
    assert torch.equal(out[outside], other[outside])
    assert torch.equal(out[~outside], free[~outside])
    assert torch.equal(relaxed_output(kept, free, torch.ones_like(is_object)), free)
