"""Re-ttention: identities of its statistics on exact inputs, and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl.calls import Layout, Row
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.sparse_masks import build_layout
from attnctl.techniques.rettention import Rettention
from tests.support.pipelines import build
from tests.techniques.sparse_runs import (
    SMALL,
    Bench,
    dense,
    probabilities,
    random_tensors,
)

GRID = (1, 8, 8)
TOKENS = 64
LAYOUT = Layout(GRID, slice(0, TOKENS))
JOINT = Layout(GRID, slice(5, 5 + TOKENS), slice(0, 5))


def bench(layout: Layout = LAYOUT, **settings: Any) -> Bench:
    given = {"sparsity": 0.7, "steps": "always", **SMALL, **settings}
    return Bench(Rettention(**given), layout)


def element_mask(technique: Rettention, layout: Layout = LAYOUT) -> Tensor:
    tokens = layout.image.stop
    share = 1 - technique.sparsity
    made = build_layout(technique.mask, layout.grid, layout.image.start, tokens, share, 16)
    return made.element_mask()


@pytest.mark.parametrize("layout", [LAYOUT, JOINT], ids=["self", "joint"])
@pytest.mark.parametrize("mask", ["frame-band", "neighbourhood", "tiles", "strided", "predicted"])
def test_frozen_inputs_without_growth_equal_dense_attention(mask: str, layout: Layout) -> None:
    one = bench(layout, mask=mask, growth=0.0)
    tensors = random_tensors(layout.image.stop)
    for step in range(8):
        assert torch.allclose(one.attend(step, tensors), dense(tensors), atol=1e-12)


def test_a_mask_that_keeps_all_has_mass_one_and_no_residual() -> None:
    one = bench(mask="tiles", sparsity=0.001, growth=0.0)
    one.attend(0, random_tensors(TOKENS))
    entry = one.cache.get(one.call(1, random_tensors(TOKENS)))
    assert entry is not None
    assert torch.allclose(entry.tensors["mass"], torch.ones(1, dtype=torch.float64))
    assert float(entry.tensors["residual"].abs().max()) < 1e-12
    later = random_tensors(TOKENS, seed=1)
    assert torch.allclose(one.attend(1, later), dense(later), atol=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_statistics_join_to_the_dense_output(dtype: torch.dtype, bound: float) -> None:
    one = bench(JOINT)
    tensors = random_tensors(JOINT.image.stop, dtype=dtype)
    out = one.attend(0, tensors)
    entry = one.cache.get(one.call(1, tensors))
    assert entry is not None
    mass, residual = entry.tensors["mass"], entry.tensors["residual"]
    mask = element_mask(one.technique, JOINT)
    kept = probabilities(tensors, mask) @ tensors[2]
    assert float((mass[..., None] * kept + residual - out).abs().max()) < bound
    expected = (probabilities(tensors) * mask).sum(-1)
    assert torch.allclose(mass, expected, atol=bound)
    assert bool((mass > 0).all())
    assert float(mass.max()) <= 1 + bound
    assert torch.allclose(mass[:, :, :5], torch.ones(1, dtype=mass.dtype))  # text sees all


@pytest.mark.parametrize("clamp", [False, True])
def test_mass_grows_by_a_constant_after_each_sparse_step(clamp: bool) -> None:
    one = bench(JOINT, growth=0.04, clamp=clamp)
    tensors = random_tensors(JOINT.image.stop)
    out = one.attend(0, tensors)
    kept = probabilities(tensors, element_mask(one.technique, JOINT)) @ tensors[2]
    entry = one.cache.get(one.call(1, tensors))
    assert entry is not None
    mass = entry.tensors["mass"]
    for step in range(1, 5):
        grown = mass + 0.04 * (step - 1)
        grown = grown.clamp(max=1.0) if clamp else grown
        expected = out + (grown - mass)[..., None] * kept
        assert torch.allclose(one.attend(step, tensors), expected, atol=1e-12)
        again = one.attend(step, tensors, stage=1)
        assert torch.allclose(again, expected, atol=1e-12)  # a correction counts nothing


def test_without_the_residual_the_sparse_part_alone_is_weighted() -> None:
    one = bench(residual=False, growth=0.0)
    tensors = random_tensors(TOKENS)
    one.attend(0, tensors)
    mask = element_mask(one.technique)
    kept = (probabilities(tensors) * mask) @ tensors[2]
    assert torch.allclose(one.attend(1, tensors), kept, atol=1e-12)


def test_caching_before_a_linear_layer_equals_caching_behind_it() -> None:
    one = bench(growth=0.0)
    tensors, later = random_tensors(TOKENS), random_tensors(TOKENS, seed=1)
    layer = torch.nn.Linear(16, 16).double()

    def projected(out: Tensor) -> Tensor:
        return layer(out.transpose(1, 2).flatten(2))

    mask = element_mask(one.technique)
    out = one.attend(0, tensors)
    entry = one.cache.get(one.call(1, tensors))
    assert entry is not None
    mass = entry.tensors["mass"][..., None]
    kept = mass * (probabilities(tensors, mask) @ tensors[2])
    residual = projected(out) - projected(kept)
    after = projected(mass * (probabilities(later, mask) @ later[2])) + residual
    assert torch.allclose(projected(one.attend(1, later)), after, atol=1e-12)


def test_two_rows_equal_two_batches_of_one() -> None:
    both, apart = bench(), [bench(), bench()]
    for one, row in zip(apart, both.rows, strict=True):
        one.rows = (row,)
    for step in range(4):
        tensors = random_tensors(TOKENS, seed=step)
        single = [b.attend(step, [t[i : i + 1] for t in tensors]) for i, b in enumerate(apart)]
        assert torch.allclose(both.attend(step, tensors), torch.cat(single), atol=1e-12)


def test_gradient_passes_are_dense_and_keep_nothing() -> None:
    one = bench()
    one.kind = "gradient"
    tensors = tuple(t.requires_grad_() for t in random_tensors(TOKENS))
    out = one.attend(0, tensors)
    assert torch.allclose(out, dense(tensors), atol=1e-12)
    assert out.requires_grad
    assert one.cache.labels() == set()


def test_columns_come_from_the_mask_and_its_share() -> None:
    one = bench(JOINT, growth=0.0)
    tensors = random_tensors(JOINT.image.stop)
    for step in range(3):
        call = one.call(step, tensors)
        call.wants_lse = True
        one.technique.attend(call)
        assert torch.allclose(
            call.columns([0, 3, 40]), probabilities(tensors)[..., [0, 3, 40]], atol=1e-10
        )


def test_rows_of_another_order_miss() -> None:
    one = bench()
    tensors = random_tensors(TOKENS)
    one.attend(0, tensors)
    one.rows = (Row("cond", 0), Row("uncond", 0))
    assert torch.allclose(one.attend(1, tensors), dense(tensors), atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"refresh": 0}, "refresh"),
        ({"refresh": 1.5}, "refresh"),
        ({"growth": float("nan")}, "growth"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"mask": "frame-bend"}, "frame-band"),
    ],
)
def test_mistakes_are_told_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Rettention(**settings)


def test_a_schedule_that_was_not_published_is_refused() -> None:
    with pytest.raises(SettingError, match="pixart"):
        Rettention.as_published("pixarts")


def test_a_denoiser_without_its_pipeline_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="re-ttention"):
        attnctl.attach(build("sd1").unet, [Rettention(steps="always", **SMALL)])
