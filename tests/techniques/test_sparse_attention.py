"""Sparse attention: its masks on every token layout, readers, heads, the check, and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Technique
from attnctl.calls import Layout
from attnctl.errors import (
    ConflictError,
    KernelError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
)
from attnctl.sparse_masks import build_layout, list_masks, register_mask
from attnctl.techniques.sparse_attention import SparseAttention
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.sparse_runs import (
    SITES,
    SMALL,
    Bench,
    dense,
    probabilities,
    random_tensors,
    run_with_report,
    steered,
)

STATIC = [name for name in list_masks() if name != "predicted"]
LAYOUTS = {
    "picture": (Layout((1, 7, 9), slice(0, 63)), 63),
    "text in front": (Layout((1, 8, 8), slice(5, 69), slice(0, 5)), 69),
    "text behind": (Layout((1, 8, 8), slice(0, 64), slice(64, 71)), 71),
    "clip": (Layout((4, 4, 5), slice(3, 83), slice(0, 3)), 83),
    "reference tokens behind": (Layout((1, 6, 6), slice(4, 40), slice(0, 4)), 52),
    "frames in the batch": (Layout((3, 8, 8), slice(0, 64), None, "frames"), 64),
}


def bench(layout: Layout, **settings: Any) -> Bench:
    return Bench(
        SparseAttention(**{"sparsity": 0.7, "steps": "always", **SMALL, **settings}), layout
    )


def element_mask(name: str, layout: Layout, tokens: int, sparsity: float) -> Tensor:
    grid = (1, *layout.grid[1:]) if layout.fold == "frames" else layout.grid
    return build_layout(name, grid, layout.image.start, tokens, 1 - sparsity, 16).element_mask()


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("mask", STATIC)
def test_it_is_attention_under_the_mask(mask: str, case: str) -> None:
    layout, tokens = LAYOUTS[case]
    one, tensors = bench(layout, mask=mask), random_tensors(tokens)
    allowed = element_mask(mask, layout, tokens, 0.7)
    expected = probabilities(tensors, allowed) @ tensors[2]
    assert torch.allclose(one.attend(0, tensors), expected, atol=1e-12)


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("mask", STATIC)
def test_tokens_beside_the_image_see_all_and_are_seen(mask: str, case: str) -> None:
    layout, tokens = LAYOUTS[case]
    allowed = element_mask(mask, layout, tokens, 0.9)[0, 0]
    beside = torch.ones(tokens, dtype=torch.bool)
    beside[layout.image] = False
    assert allowed[beside].all()
    assert allowed[:, beside].all()
    assert allowed.diagonal().all()  # a token sees itself


@pytest.mark.parametrize("mask", [name for name in list_masks() if name != "radial"])
def test_almost_no_sparsity_equals_dense_attention(mask: str) -> None:
    layout, tokens = LAYOUTS["text in front"]
    settings = {"sparsity": 1e-6} if mask in ("neighbourhood", "tiles", "predicted") else {}
    one, tensors = bench(layout, mask=mask, **settings), random_tensors(tokens)
    is_equal = torch.allclose(one.attend(0, tensors), dense(tensors), atol=1e-10)
    assert is_equal == bool(settings)  # bands of 30 percent are not all of it


@pytest.mark.parametrize("mask", ["raster-band", "frame-band", "neighbourhood", "tiles"])
def test_the_share_of_pairs_is_near_what_was_asked(mask: str) -> None:
    for grid in ((1, 32, 32), (4, 16, 16)):
        made = build_layout(mask, grid, 0, 1024, 0.1, 64)
        assert 0.06 < made.kept_share < 0.16
        assert made.density < 0.5


def test_the_order_packs_bands_over_frames_into_fewer_blocks() -> None:
    packed = build_layout("frame-band", (8, 8, 16), 0, 1024, 0.05, 64)
    tokens = torch.arange(1024)
    near = (tokens[:, None] % 128 - tokens % 128).abs() <= 3
    assert torch.equal(packed.element_mask()[0, 0], near)
    unpacked = attnctl.kernels.BlockLayout.from_element_mask(near)
    assert packed.density < 0.5 * unpacked.density


def test_predictions_keep_text_and_follow_each_row_and_head() -> None:
    layout, tokens = LAYOUTS["text in front"]
    one = bench(layout, mask="predicted", sparsity=0.8)
    tensors = random_tensors(tokens)
    call = one.call(0, tensors)
    made = one.technique.layout_of(call, one.cache)
    assert made.element_mask()[..., layout.text].all()
    assert made.full_count.shape[:2] == (2, 2)
    expected = probabilities(tensors, made.element_mask()) @ tensors[2]
    assert torch.allclose(one.technique.attend(call), expected, atol=1e-12)


@pytest.mark.parametrize("mask", ["neighbourhood", "predicted"])
@pytest.mark.parametrize("heads", [None, (1,)])
def test_columns_are_those_of_the_map_that_was_used(mask: str, heads: Any) -> None:
    layout, tokens = LAYOUTS["text in front"]
    one, tensors = bench(layout, mask=mask), random_tensors(tokens)
    call = one.call(0, tensors)
    call.wants_lse, call.heads = True, heads
    out = one.technique.attend(call)
    allowed = one.technique.layout_of(one.call(0, tensors), one.cache).element_mask()
    if heads is not None and mask == "predicted":
        part = [t[:, [1]] for t in tensors]
        allowed = one.technique.layout_of(one.call(0, part), one.cache).element_mask()
        allowed = torch.cat((torch.ones_like(allowed), allowed), dim=1)
    elif heads is not None:
        allowed = torch.cat((torch.ones_like(allowed), allowed), dim=1)
    probs = probabilities(tensors, allowed)
    assert torch.allclose(out, probs @ tensors[2], atol=1e-10)
    assert torch.allclose(call.columns(range(tokens)), probs, atol=1e-10)
    at = torch.tensor([1])
    assert torch.allclose(call.columns([2, 30], at, slice(5, 20)), probs[1:, :, 5:20, [2, 30]])
    with pytest.raises(KernelError, match="columns"):
        call.masses(torch.ones(tokens, 1))


def test_a_mask_of_another_package_is_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnctl import sparse_masks

    monkeypatch.setattr(sparse_masks, "_masks", dict(sparse_masks._masks))
    register_mask("same-row", lambda grid, share: (lambda q, k: q // grid[2] == k // grid[2], None))
    layout, tokens = LAYOUTS["picture"]
    one, tensors = bench(layout, mask="same-row"), random_tensors(tokens)
    rows = torch.arange(tokens) // 9
    expected = probabilities(tensors, rows[:, None] == rows) @ tensors[2]
    assert torch.allclose(one.attend(0, tensors), expected, atol=1e-12)
    with pytest.raises(SettingError, match="exists already"):
        register_mask("tiles", lambda grid, share: (lambda q, k: q == k, None))


def test_a_static_mask_is_cut_once_a_run_and_told() -> None:
    _, report = run_with_report(build("sd1"), [SparseAttention(steps="always", **SMALL)], steps=3)
    assert len(report.notes) == 2  # 16 x 16 and 8 x 8
    assert all("of the pairs" in note for note in report.notes)
    assert report.notes[0] in str(report)


@pytest.mark.parametrize("name", SITES)
def test_every_family_runs_and_is_restored(name: str) -> None:
    pipe = build(name)
    plain, before = generate(pipe), fingerprint(pipe)
    technique = SparseAttention(sparsity=0.8, steps="always", where=SITES[name], **SMALL)
    out, report = run_with_report(pipe, [technique])
    assert torch.isfinite(out).all()
    assert not torch.equal(out, plain)
    kernels = {e.kernel for e in report.entries}
    assert kernels <= {"cpu-gather", "masked-sdpa"}
    assert kernels
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize(
    "technique",
    [SparseAttention(sparsity=0, least_tokens=0), SparseAttention(steps="5-7", least_tokens=0)],
    ids=["sparsity 0", "window behind the run"],
)
def test_off_is_identical(technique: SparseAttention) -> None:
    pipe = build("sd1")
    assert torch.equal(steered(pipe, [technique]), generate(pipe))


def test_the_check_falls_back_to_dense_attention_and_says_so() -> None:
    layout, tokens = LAYOUTS["picture"]
    tensors = random_tensors(tokens)
    strict = bench(layout, max_error=0.05, sparsity=0.9)
    for step in range(2):
        assert torch.allclose(strict.attend(step, tensors), dense(tensors), atol=1e-12)
    assert len(strict.report.warnings) == 1
    assert "mid.attn1" in strict.report.warnings[0]
    assert "max_error=0.05" in str(strict.report)
    lenient = bench(layout, max_error=10.0, sparsity=0.9)
    assert not torch.allclose(lenient.attend(0, tensors), dense(tensors), atol=1e-3)
    assert lenient.report.warnings == []


def test_a_site_with_a_mask_of_its_own_is_dense_and_told() -> None:
    layout, tokens = LAYOUTS["picture"]
    one, tensors = bench(layout), random_tensors(tokens)
    call = one.call(0, tensors)
    call.mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    out = one.technique.attend(call)
    assert torch.allclose(out, probabilities(tensors, call.mask) @ tensors[2], atol=1e-12)
    assert "mask of its own" in one.report.warnings[0]


@dataclass(frozen=True)
class OtherOwner(Technique):
    """Owns the kernel of every site."""

    name: ClassVar[str] = "other-owner"

    def attend(self, call: AttentionCall) -> Tensor:
        return call.attend(call.query, call.key, call.value, call.mask)


@pytest.mark.parametrize("other", [OtherOwner(), attnctl.Rettention(least_tokens=0)])
def test_two_owners_of_a_site_are_refused(other: Technique) -> None:
    pipe = build("sd1")
    generate(pipe)  # pipelines of diffusers remember their latest call
    before = fingerprint(pipe)
    sparse = SparseAttention(least_tokens=0)
    with (
        pytest.raises(ConflictError, match="kernel"),
        attnctl.attach(pipe, [sparse, other]),
    ):
        generate(pipe)
    assert differences(before, fingerprint(pipe)) == []


def test_two_owners_of_different_sites_go_together() -> None:
    team = [
        SparseAttention(where="down:self", steps="always", **SMALL),
        attnctl.Rettention(where="up:self", steps="always", **SMALL),
    ]
    _, report = run_with_report(build("sd1"), team)
    served = {e.site.split(".")[1]: e.techniques for e in report.entries}
    assert served == {"down_blocks": ("sparse-attention",), "up_blocks": ("re-ttention",)}


def test_cross_attention_is_refused() -> None:
    pipe = build("sd1")
    with (
        attnctl.attach(pipe, [SparseAttention(where="cross", steps="always", **SMALL)]),
        pytest.raises(UnsupportedModelError, match="cross attention"),
    ):
        generate(pipe)


def test_pictures_that_are_too_small_are_refused_with_a_remedy() -> None:
    pipe = build("sd1")
    with (
        attnctl.attach(pipe, [SparseAttention(steps="always")]),
        pytest.raises(NoSiteError, match=r"1024 image tokens.*64, 256.*least_tokens"),
    ):
        generate(pipe)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": "neighborhood"}, "neighbourhood"),
        ({"sparsity": 1}, "sparsity"),
        ({"sparsity": True}, "sparsity"),
        ({"block": 20}, "multiple of 8"),
        ({"max_error": -1}, "max_error"),
        ({"checked_rows": 0}, "checked_rows"),
        ({"steps": "0-50% ramp 1..0"}, "ramp"),
    ],
)
def test_mistakes_are_told_at_once(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        SparseAttention(**settings)
