"""Conflicts are found from what techniques declare, before the first forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import (
    AttentionCall,
    Schedule,
    Technique,
    after,
    attach,
    between,
    list_techniques,
    until,
)
from attnctl.errors import ConflictError, NoSiteError, UnsupportedModelError
from attnctl.registry import find_technique
from tests.core.claims import REFUSED, SAMPLES, Kernel, OtherKernel
from tests.core.samples import Temperature, Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate

PAIRS = [(a, b) for i, a in enumerate(SAMPLES) for b in SAMPLES[i + 1 :]]
REFUSED_PAIRS = [pair for pair in PAIRS if frozenset(pair) in REFUSED]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build("sd1")


def everywhere(kind: type[Technique], steps: Schedule | str = "always") -> Technique:
    return kind(where="mid:cross", steps=steps)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=lambda kind: kind.name)
def test_the_conflict_matrix_follows_from_the_declarations(
    pipe: Any, a: type[Technique], b: type[Technique]
) -> None:
    for first, second in ((a, b), (b, a)):
        if frozenset((a, b)) not in REFUSED:
            attach(pipe, [everywhere(first), everywhere(second)]).detach()
            continue
        with pytest.raises(ConflictError) as caught:
            attach(pipe, [everywhere(first), everywhere(second)])
        assert repr(a.name) in str(caught.value)
        assert repr(b.name) in str(caught.value)
        assert "where=" in str(caught.value) or "steps" in str(caught.value)


@pytest.mark.parametrize(("a", "b"), REFUSED_PAIRS, ids=lambda kind: kind.name)
def test_refused_pairs_go_together_in_windows_that_do_not_meet(
    pipe: Any, a: type[Technique], b: type[Technique]
) -> None:
    for first, second in ((until(1), after(1)), (until(0.5), after(0.5)), (until(1), after(0.5))):
        with attach(pipe, [everywhere(a, first), everywhere(b, second)]):
            assert generate(pipe, steps=2).isfinite().all()


@pytest.mark.parametrize(("a", "b"), REFUSED_PAIRS, ids=lambda kind: kind.name)
def test_windows_of_different_units_are_decided_before_the_first_forward(
    pipe: Any, a: type[Technique], b: type[Technique]
) -> None:
    forwards: list[Any] = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *call: forwards.append(call))
    try:
        with (
            attach(pipe, [everywhere(a, until(2)), everywhere(b, after(0.25))]),
            pytest.raises(ConflictError, match="first at step 1"),
        ):
            generate(pipe, steps=4)
    finally:
        handle.remove()

    assert forwards == []


def test_a_conflict_names_both_the_site_and_what_to_do(pipe: Any) -> None:
    site = "mid_block.attentions.0.transformer_blocks.0.attn2"
    with pytest.raises(
        ConflictError,
        match=rf"'kernel-owner' and 'other-kernel' both need .*unet\.{site}.*where=.*steps=",
    ):
        attach(pipe, [everywhere(Kernel), everywhere(OtherKernel)])


def test_kernels_of_different_sites_go_together(pipe: Any) -> None:
    plain = generate(pipe)
    with attach(pipe, [Kernel(where="mid"), OtherKernel(where="down")]) as session:
        both = generate(pipe)
        kernels = {entry.kernel for entry in session.report().entries}

    assert kernels == {"kernel-owner", "other-kernel"}
    assert torch.allclose(plain, both, atol=1e-4)


def test_a_resolution_that_keeps_two_kernels_apart_is_no_conflict(pipe: Any) -> None:
    with attach(pipe, [Kernel(where="self:res=16"), OtherKernel(where="self:res=8")]):
        assert generate(pipe).isfinite().all()
        with pytest.raises(NoSiteError, match="12x12"):
            generate(pipe, height=24, width=24)


def test_resolutions_that_meet_are_refused_before_the_first_forward(pipe: Any) -> None:
    before = fingerprint(pipe)
    with (
        pytest.raises(ConflictError, match="first at step 0"),
        attach(pipe, [Kernel(where="self:res=8"), OtherKernel(where="mid:self")]),
    ):
        generate(pipe)

    assert differences(before, fingerprint(pipe)) == []


def test_a_conflict_with_a_session_that_is_attached_already_is_refused(pipe: Any) -> None:
    with attach(pipe, Kernel()), pytest.raises(ConflictError, match="kernel-owner"):
        attach(pipe, OtherKernel())


def test_a_resolution_that_no_site_has_is_an_error_that_lists_those_there_are(pipe: Any) -> None:
    with (
        attach(pipe, Temperature(where="res=5")),
        pytest.raises(NoSiteError, match=r"temperature: .*16x16, 8x8"),
    ):
        generate(pipe)


def test_a_layout_that_nobody_knows_is_refused_with_the_list_of_those_that_are_known(
    unknown_pipe: Any,
) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'transformer'.*supported: Allegro, AnyFlow, AuraFlow, "
    ):
        attach(unknown_pipe, Watch(needs_layout=True))


def test_links_run_in_the_order_of_the_list() -> None:
    order: list[str] = []

    def noting(label: str) -> type[Technique]:
        class Noting(Technique):
            name = label

            def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
                order.append(label)
                return out

        return Noting

    pipe = build("sd1")
    first, second, third = (noting(label)(where="mid:self") for label in "abc")
    with attach(pipe, [second, first]), attach(pipe, third):
        generate(pipe, steps=1)

    assert order == ["b", "a", "c"]


def test_a_technique_that_is_never_active_is_reported(pipe: Any) -> None:
    with attach(pipe, Temperature(steps=between(10, 20))) as session:
        generate(pipe)

    assert session.report().warnings == ["temperature: steps=10-20 is never active in 2 steps"]


@pytest.mark.parametrize("record", list_techniques(), ids=lambda record: record.name)
def test_registered_techniques_claim_only_what_the_planner_knows(record: Any) -> None:
    from attnctl.technique import CLAIMS

    assert find_technique(record.name)().all_claims() <= CLAIMS
