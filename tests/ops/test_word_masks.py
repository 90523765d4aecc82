"""Masks from word maps, and latents blended by them."""

from __future__ import annotations

import torch

from attnctl.ops.word_masks import blend_latents, blend_mask, subject_mask


def test_a_blend_mask_is_the_widened_share_of_the_maximum() -> None:
    word = torch.zeros(1, 4, 4)
    word[0, 0, 0], word[0, 3, 3] = 1.0, 0.25
    wide = blend_mask(word, (8, 8), 0.3)
    assert wide.shape == (1, 1, 8, 8)
    assert wide[0, 0, :4, :4].all()
    assert int(wide.sum()) == 16
    narrow = blend_mask(word, (8, 8), 0.3, pool=False)
    assert int(narrow.sum()) == 4
    assert int(blend_mask(word, (8, 8), 0.2, pool=False).sum()) == 8


def test_the_scale_of_a_map_does_not_matter_and_no_mass_gives_no_mask() -> None:
    word = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend_mask(word, (4, 4), 0.5), blend_mask(100 * word, (4, 4), 0.5))
    assert not blend_mask(torch.zeros(1, 4, 4), (4, 4), 0.3).any()


def test_an_empty_mask_gives_the_source_and_a_full_one_the_target() -> None:
    source, target = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    empty = torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    assert torch.equal(blend_latents(source, target, empty), source)
    assert torch.equal(blend_latents(source, target, ~empty), target)


def test_a_subject_mask_is_min_max_normalised() -> None:
    word = torch.tensor([[2.0, 2.05], [2.2, 3.0]])
    assert subject_mask(word, (2, 2), 0.1).tolist() == [[False, False], [True, True]]
    assert subject_mask(word, (4, 4), 0.1).sum() == 8
    assert subject_mask(torch.full((2, 2), 7.0), (2, 2), 0.1).all()
