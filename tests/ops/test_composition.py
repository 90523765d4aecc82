"""PrimeComposer's arithmetic: windows, tokens that correspond, start latents, infused logits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from attnctl.kernels import attention, attention_scores
from attnctl.ops.composition import (
    infused_attention,
    paired_tokens,
    start_latents,
    steps_until,
    with_tokens,
)


@pytest.mark.parametrize(
    ("share", "steps", "order", "last"),
    [
        (0.3, 20, 2, 4), (0.8, 20, 2, 14), (0.1, 20, 2, 0), (0.2, 20, 2, 2),
        (0.3, 20, 1, 5), (0.8, 20, 1, 15), (0.3, 50, 1, 14), (0.3, 7, 1, 1), (1.0, 7, 1, 6),
        (0.0, 20, 1, -1), (0.0, 20, 2, -1), (0.29, 100, 1, 28),
    ],
)  # fmt: skip
def test_windows_end_with_the_step_of_the_authors_formula(
    share: float, steps: int, order: int, last: int
) -> None:
    assert steps_until(share, steps, order) == last + 1


def blob() -> Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:12, 5:13] = True
    mask[3, 5] = mask[7, 9] = False
    return mask


@pytest.mark.parametrize("shift", [(0, 0), (4, -4), (-4, 8), (8, 0), (-12, 12)])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_tokens_correspond_in_row_major_order(shift: tuple[int, int], stride: int) -> None:
    own, scene, side = [], [], 16 // stride
    for y in range(side):
        for x in range(side):
            to = (y + shift[0] // stride, x + shift[1] // stride)
            if blob()[y * stride, x * stride] and 0 <= to[0] < side and 0 <= to[1] < side:
                own.append(y * side + x)
                scene.append(to[0] * side + to[1])
    ours = paired_tokens(blob(), shift, stride)
    assert [x.tolist() for x in ours] == [own, scene]
    assert scene == sorted(scene)


def test_moved_cells_in_the_scene_are_those_of_the_moved_mask() -> None:
    moved = torch.roll(blob(), (4, -4), (0, 1))
    for stride in (1, 2, 4):
        _, scene = paired_tokens(blob(), (4, -4), stride)
        same, _ = paired_tokens(moved, (0, 0), stride)
        assert torch.equal(scene, same)


def test_start_latents_have_noise_in_the_box_and_the_object_or_the_scene_in_its_cells() -> None:
    scene, given, noise = (torch.randn(1, 4, 16, 16) for _ in range(3))
    box = torch.zeros(16, 16, dtype=torch.bool)
    box[6:, :10] = True
    pair = paired_tokens(blob(), (4, -4))
    for from_object in (True, False):
        truth = scene.clone()
        for y in range(16):
            for x in range(16):
                at = (y - 4, x + 4)
                shows = 0 <= at[0] < 16 and 0 <= at[1] < 16 and bool(blob()[at])
                if shows:
                    truth[..., y, x] = given[..., *at] if from_object else scene[..., y, x]
                elif box[y, x]:
                    truth[..., y, x] = noise[..., y, x]
        ours = start_latents(scene, given, noise, box, pair, from_object=from_object)
        assert torch.equal(ours, truth)


def test_cells_are_written_for_every_item_and_the_base_is_left_alone() -> None:
    base, given = torch.zeros(2, 1, 2, 2), torch.arange(4.0).view(1, 1, 2, 2)
    made = with_tokens(base, torch.tensor([0, 3]), given, torch.tensor([2, 1]))
    assert made.flatten(1).tolist() == [[2.0, 0.0, 0.0, 1.0]] * 2
    assert not base.any()


def inputs(seed: int = 0, tokens: int = 9, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, tokens, 4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "qkv"]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None):
    return attention(query, key, value, mask, need_lse=True)


def reference(parts: list[Tensor], prior: Tensor, tokens: list[int], mask: Tensor | None) -> Tensor:
    """Whole maps, entry by entry, in float64."""
    query, key, value = (x.double() for x in parts)
    batch, heads, count, width = query.shape
    out = torch.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            logits = [
                [float(query[b, h, q] @ key[b, h, k]) / math.sqrt(width) for k in range(count)]
                for q in range(count)
            ]
            for place, token in enumerate(tokens):
                for q in range(count):
                    logits[q][token] = float(prior[b, h, q, place])
            for place, token in enumerate(tokens):
                for k in range(count):
                    logits[token][k] = float(prior[b, h, k, place])
            for q in range(count):
                row = torch.tensor(logits[q], dtype=torch.float64)
                row = row if mask is None else row + mask[b, 0, q].double()
                probs = row.softmax(0)
                assert float(probs.sum()) == pytest.approx(1.0, abs=1e-12)
                out[b, h, q] = probs @ value[b, h]
    return out


@pytest.mark.parametrize("tokens", [[2], [1, 4, 8], list(range(9))])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_infused_attention_equals_whole_maps(
    tokens: list[int], is_masked: bool, dtype: torch.dtype, least: float
) -> None:
    parts = inputs(dtype=dtype)
    prior = torch.randn(2, 3, 9, len(tokens), dtype=torch.float64).to(dtype)
    mask = torch.randn(2, 1, 9, 9, dtype=torch.float64).to(dtype) if is_masked else None
    ours = infused_attention(*parts, prior, torch.tensor(tokens), mask, attend)
    truth = reference(parts, prior, tokens, mask)
    assert float((ours.double() - truth).abs().max()) < least


def test_an_object_without_tokens_changes_nothing() -> None:
    query, key, value = inputs()
    nothing = torch.zeros(0, dtype=torch.long)
    ours = infused_attention(query, key, value, torch.zeros(2, 3, 9, 0), nothing, None, attend)
    assert torch.equal(ours, attend(query, key, value, None)[0])


def test_own_logits_as_prior_change_no_other_row_and_rows_only_by_their_symmetry() -> None:
    query, key, value = inputs()
    tokens = torch.tensor([1, 4, 8])
    prior = attention_scores(query, key)[..., tokens]
    run = partial(infused_attention, tokens=tokens, mask=None, attend=attend)
    ours, plain = run(query, key, value, prior), attend(query, key, value, None)[0]
    rest = [0, 2, 3, 5, 6, 7]
    assert torch.allclose(ours[:, :, rest], plain[:, :, rest], atol=1e-12)
    assert not torch.allclose(ours[:, :, tokens], plain[:, :, tokens], atol=1e-3)
    symmetric = attention_scores(query, query)[..., tokens]
    ours, plain = run(query, query, value, symmetric), attend(query, query, value, None)[0]
    assert torch.allclose(ours, plain, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_float64(dtype: torch.dtype) -> None:
    parts = inputs(dtype=dtype)
    prior = torch.randn(2, 3, 9, 2)
    ours = infused_attention(*parts, prior, torch.tensor([0, 5]), None, attend)
    assert ours.dtype == dtype
    truth = reference(parts, prior, [0, 5], None)
    assert float((ours.double() - truth).abs().max()) < 0.02
