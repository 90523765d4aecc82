"""Techniques choose rows by item: added rows for some pictures only, module hooks for their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

import attnctl
from attnctl import AttentionCall, Needs, Technique
from attnctl.blocks import ModelParts
from attnctl.calls import AddedRow, Row, Rows, Step
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.engine.rows import append_rows, rows_of_call
from tests.support.pipelines import build, generate

PROMPTS = ["a cat", "a dog", "a frog"]


@dataclass(frozen=True)
class TwoKinds(Technique):
    """Adds rows of two kinds for some pictures; those of one kind skip the last block."""

    name: ClassVar[str] = "two-kinds"
    items: tuple[int, ...] | None = (1,)
    sites: list[tuple[str, Rows]] = field(default_factory=list[tuple[str, Rows]], compare=False)

    def needs(self) -> Needs:
        return Needs(
            rows=tuple(AddedRow(kind, items=self.items) for kind in ("stays", "skips")),
            couples=True,
        )

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        last = model.blocks[-1]
        return (ModuleHook(last.path, "skip", streams=last.streams, kind="skips"),)

    def edit_output(self, call: AttentionCall, out: torch.Tensor) -> torch.Tensor:
        self.sites.append((call.site.path, call.rows))
        return out


def test_an_added_row_copies_the_rows_of_its_items() -> None:
    rows = rows_of_call(("uncond", "cond"), 3)
    assert AddedRow("x", items=(2, 0)).shadowed(rows) == [3, 5]
    assert AddedRow("x").shadowed(rows) == [3, 4, 5]
    assert AddedRow("x", shadows="uncond", items=(1,)).shadowed(rows) == [1]
    given = {"sample": torch.arange(6.0), "other": 1}
    added = AddedRow("x", items=(2,), owner="me")
    inputs, roles = append_rows(given, frozenset({"sample"}), rows, [added])
    assert inputs["sample"].tolist() == [0, 1, 2, 3, 4, 5, 5]
    assert roles[6:] == (Row("cond", 2, "x", "me"),)


def test_a_module_call_picks_rows_by_item() -> None:
    rows = (*rows_of_call(("uncond", "cond"), 2), Row("cond", 1, "x", "me"))
    call = ModuleCall("block", Step(0, 1), rows, {}, owner="me")
    tensor = torch.zeros(10, 3)  # two frames a row
    assert call.pick(tensor, item=1).tolist() == [2, 3, 6, 7, 8, 9]
    assert call.pick(tensor, branch="cond", item=1, kind="main").tolist() == [6, 7]
    assert call.pick(tensor, item=0, kind="x").tolist() == []


def test_one_kind_of_added_rows_skips_a_module() -> None:
    pipe, technique = build("flux"), TwoKinds()
    plain = generate(pipe, PROMPTS, steps=1)
    with attnctl.attach(pipe, [technique]):
        assert torch.allclose(generate(pipe, PROMPTS, steps=1), plain, atol=1e-5)
    kinds = {path: [row.kind for row in rows] for path, rows in technique.sites}
    everywhere = ["main"] * 3 + ["stays", "skips"]
    assert kinds.pop("single_transformer_blocks.1.attn") == everywhere[:-1]
    assert set(map(tuple, kinds.values())) == {tuple(everywhere)}
