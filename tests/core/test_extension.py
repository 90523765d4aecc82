"""A user's own technique, method by method; processors without a session; other packages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Technique, attach
from attnctl.calls import PredictionCall, RunStart
from attnctl.engine.needs import Needs, Read
from attnctl.errors import (
    UnsupportedModelError,
)
from tests.core.claims import Kernel, Probabilities
from tests.core.samples import Dim, Identity, Scores, Shift, Temperature
from tests.support.denoisers import DENOISERS
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate

ZOO = ("sd1", "sdxl", "sd3", "flux", "pixart_alpha", "animatediff", "cogvideox", "wan", "lumina2")
MASKED = [name for name, e in DENOISERS.items() if "encoder_attention_mask" in e.inputs()]


@dataclass(frozen=True)
class Double(Technique):
    """Doubles the output of one head."""

    name: ClassVar[str] = "double"

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        heads = list(range(out.shape[1])) if call.heads is None else list(call.heads)
        factor = torch.ones(out.shape[1])
        factor[heads] = 2.0
        return out * factor.view(1, -1, 1, 1).to(out)


@dataclass(frozen=True)
class Diary(Technique):
    """Notes the order of its phases in a state of its own."""

    name: ClassVar[str] = "diary"
    pages: list[list[str]] = field(default_factory=list[list[str]], compare=False)

    def needs(self) -> Needs:
        return Needs(reads=(Read("probs"), Read("qk", raw=True)))

    def begin(self, run: RunStart) -> list[str]:
        return [f"begin {run.items} {run.total}"]

    def edit_inputs(self, call: Any) -> None:
        call.state.append("inputs")

    def edit_qkv(self, call: AttentionCall) -> None:
        call.state.append("qkv")

    def edit_scores(self, call: AttentionCall, scores: Tensor) -> Tensor:
        call.state.append("scores")
        return scores

    def edit_probs(self, call: AttentionCall, probs: Tensor) -> Tensor:
        assert torch.allclose(probs.sum(-1), torch.ones(probs.shape[:-1]), atol=1e-5)
        call.state.append("probs")
        return probs

    def read(self, call: AttentionCall, what: Read, value: Any) -> None:
        call.state.append(f"read {what.what}")

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        call.state.append("output")
        return out

    def edit_prediction(self, call: PredictionCall) -> None:
        call.state.append("prediction")

    def after_step(self, call: Any) -> None:
        call.state.append("after")

    def end(self, state: list[str]) -> list[str]:
        self.pages.append(state)
        return state


def test_phases_come_in_the_order_of_the_methods() -> None:
    diary = Diary(where="mid:self")
    pipe = build("sd1")
    with attach(pipe, diary):
        generate(pipe, steps=2)
    site = ["read qk", "qkv", "scores", "probs", "read probs", "output"]
    step = ["inputs", *site, "prediction", "after"]

    assert diary.pages == [["begin 1 2", *step, *step]]


@pytest.mark.parametrize("name", ZOO)
def test_the_explicit_path_equals_the_fused_one_while_nothing_is_edited(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    for neutral in (Scores(), Probabilities(), Kernel()):
        with attach(pipe, neutral):
            ours = generate(pipe)
        assert (ours - plain).abs().max() < 2e-4 * plain.abs().max()


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_the_model_hold_on_the_explicit_path(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    plain = entry.run(model)
    try:
        with attach(model, Probabilities()):
            ours = entry.run(model)
    except UnsupportedModelError:
        pytest.skip("no softmax attention")

    assert (ours - plain).abs().max() < 1e-3 * plain.abs().max()


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize(
    "technique",
    [Temperature(), Scores(amount=3.0), Double(), Shift()],
    ids=lambda technique: technique.name,
)
def test_an_edit_changes_the_result_and_leaves_no_trace(name: str, technique: Technique) -> None:
    pipe = build(name)
    plain = generate(pipe)
    before = fingerprint(pipe)
    with attach(pipe, technique):
        ours = generate(pipe)
        assert torch.equal(ours, generate(pipe))

    assert not torch.equal(plain, ours)
    assert ours.isfinite().all()
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(plain, generate(pipe))


def test_inputs_are_edited_for_one_forward_alone() -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    with attach(pipe, Dim(factor=1.0)):
        assert torch.equal(plain, generate(pipe))
    with attach(pipe, Dim(factor=0.5, steps="1-")) as session:
        assert not torch.equal(plain, generate(pipe))

    assert session.report().total == 2


def test_heads_that_are_not_selected_stay_as_they_are() -> None:
    pipe = build("sd1")
    with attach(pipe, Double(where="mid:self:heads=0")):
        one = generate(pipe)
    with attach(pipe, Double(where="mid:self:heads=0+1")):
        both = generate(pipe)
    with attach(pipe, Double(where="mid:self")):
        assert torch.equal(both, generate(pipe))

    assert not torch.equal(one, both)


def test_state_is_new_in_each_run() -> None:
    diary = Diary(where="mid:self")
    pipe = build("sd1")
    with attach(pipe, diary):
        generate(pipe, steps=1)
        generate(pipe, steps=1)

    assert len(diary.pages) == 2
    assert diary.pages[0] == diary.pages[1]
    assert diary.pages[0] is not diary.pages[1]


def test_a_forced_kernel_is_used_where_techniques_act_and_reported() -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    for kernel in attnctl.list_kernels():
        takes_blocks_only = kernel.mask == {"block"}
        if takes_blocks_only or kernel.why_missing() is not None or "cpu" not in kernel.devices:
            continue
        with attach(pipe, Identity(where="mid"), kernel=kernel.name) as session:
            ours = generate(pipe)
            assert {entry.kernel for entry in session.report().entries} == {kernel.name}
        assert torch.allclose(ours, plain, atol=1e-4)


def test_a_session_shows_what_is_on_and_a_report_what_ran() -> None:
    pipe = build("sd1")
    with attach(pipe, [Temperature(where="mid:self", steps="0-50%"), Shift()]) as session:
        assert repr(session).startswith("<Session attached>")
        assert "1 sites" in repr(session)
        generate(pipe, steps=4)
        report = session.report()
    table = str(report)

    assert "<Session detached>" in repr(session)
    assert "temperature" in table
    assert "0-1 of 4" in table
    assert report.to_dict()["settings"]["temperature"]["steps"] == "0-50%"
    assert [entry.calls for entry in report.entries] == [1, 1]
