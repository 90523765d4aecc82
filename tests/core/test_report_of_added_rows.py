"""What a report says of added rows, matched modules, and scales without effect."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from attnctl import PAG, SEG, SLG, TPG, SoftPAG, Technique, attach
from attnctl.report import AddedEntry, Report
from tests.support.pipelines import build, generate


def reported(pipe: Any, *techniques: Technique, **changes: Any) -> Report:
    with attach(pipe, list(techniques)) as session:
        generate(pipe, **changes)
    return session.report()


def test_a_report_tells_from_which_block_added_rows_were_computed() -> None:
    report = reported(build("sd1"), PAG(steps="0-2"), SEG(where="down:self", steps="2-3"), steps=4)
    assert report.added == [
        AddedEntry(0, "pag", "mid_block"),
        AddedEntry(1, "pag", "mid_block"),
        AddedEntry(2, "seg", "down_blocks.0"),
    ]
    lines = report.table().splitlines()
    assert "added rows of pag, steps 0-1: from mid_block on, replayed before it" in lines
    assert "added rows of seg, steps 2: from down_blocks.0 on, replayed before it" in lines


@pytest.mark.parametrize(
    ("name", "technique", "first"),
    [
        ("sd3", SLG(blocks=(2,), steps="always"), "transformer_blocks.2"),
        ("flux", TPG(blocks=(3,)), "single_transformer_blocks.1"),
        ("wan", SLG(blocks=(0,), steps="always"), None),
        ("pixart_sigma", SEG(where="layers=1,self"), "transformer_blocks.1"),
    ],
)
def test_the_block_is_the_first_that_treats_added_rows_differently(
    name: str, technique: Technique, first: str | None
) -> None:
    report = reported(build(name), technique)
    assert [entry.first for entry in report.added] == [first, first]


def test_a_report_lists_the_sites_and_blocks_that_matched() -> None:
    report = reported(
        build("sd1"), SoftPAG(), SLG(blocks="0-1", steps="always"), TPG(blocks=(1,), scale=0)
    )
    assert report.matched["soft-pag"] == ("unet.mid_block.attentions.0.transformer_blocks.0.attn1",)
    assert report.active_steps("slg") == (0, 1)
    assert len(report.matched["slg"]) == 2
    assert all(path.startswith("unet.") for path in report.matched["slg"])
    skipped = {entry.site for entry in report.entries if entry.kernel == "skip"}
    assert skipped == set(report.matched["slg"])
    assert report.active_steps("tpg") == ()


def test_a_report_is_plain_values() -> None:
    plain = reported(build("sd1"), PAG(), SLG(blocks=(1,), steps="always")).to_dict()
    again = json.loads(json.dumps(plain))
    assert {entry["technique"] for entry in again["added_rows"]} == {"pag", "slg"}
    assert set(again["matched"]) == {"pag", "slg"}


def test_techniques_that_are_switched_off_or_change_nothing_are_reported() -> None:
    pipe = build("sd1")
    assert reported(pipe, SEG(scale=0)).warnings == [
        "seg: it is switched off by its settings, so it has no effect"
    ]
    narrow = reported(pipe, SEG(sigma=1e-3), SoftPAG()).warnings
    assert len(narrow) == 1
    assert narrow[0].startswith("seg: its perturbed rows came out equal")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_technique_with_an_effect_is_not_warned_of(dtype: torch.dtype) -> None:
    pipe = build("sd1").to(dtype)
    assert reported(pipe, SoftPAG(), TPG(blocks=(1,))).warnings == []


def test_a_session_shows_on_how_many_blocks_a_technique_acts() -> None:
    with attach(build("sd1"), [SLG(blocks="0-1"), SEG()]) as session:
        lines = repr(session).splitlines()
    assert lines[1].endswith(": 2 blocks")
    assert lines[2].endswith(": 1 sites")
