"""Replay: blocks before the first perturbed one compute the pipeline's rows alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnctl.engine.replay import Replay, fold_of, leading_rows
from attnctl.sites import BlockList


class Block(nn.Module):
    """Adds the time's embedding to two streams, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[int, ...]] = []

    def forward(
        self, hidden_states: Tensor, text: Tensor, time: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.given = [tuple(t.shape) for t in (hidden_states, text, time, positions)]
        return hidden_states + time[:, None] + positions, text * 2


def model() -> nn.Module:
    made = nn.Module()
    made.blocks = nn.ModuleList(Block() for _ in range(3))
    return made


def inputs(rows: int, tokens: int) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(rows, tokens, 5),
        "text": torch.randn(rows, 2, 5),
        "time": torch.randn(rows, 5),
        "positions": torch.randn(tokens, 5),
    }


@contextmanager
def alone(entered: list[int]) -> Any:
    entered.append(1)
    yield


def test_earlier_blocks_get_the_own_rows_and_give_all_rows() -> None:
    made, entered = model(), []
    given = inputs(3, 9)
    for name in ("hidden_states", "text", "time"):
        given[name][2] = given[name][1]
    wanted = made.blocks[0](**given)
    replay = Replay(made, (BlockList("blocks"),), ["blocks.2.attn"])
    assert (replay.first, replay.is_worthwhile) == ("blocks.2", True)
    stop = replay.install(2, [1], lambda: alone(entered))
    found = made.blocks[0](**given)
    assert made.blocks[0].given == [(2, 9, 5), (2, 2, 5), (2, 5), (9, 5)]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert entered == [1]
    made.blocks[2](**given)
    assert made.blocks[2].given[0] == (3, 9, 5)
    stop()
    assert all("forward" not in block.__dict__ for block in made.blocks)
    made.blocks[0](**given)
    assert made.blocks[0].given[0] == (3, 9, 5)


def test_where_tokens_could_be_taken_for_rows_every_row_is_computed() -> None:
    made = model()
    stop = Replay(made, (BlockList("blocks"),), ["blocks.1"]).install(2, [1], lambda: alone([]))
    made.blocks[0](**inputs(3, 3))
    stop()
    assert made.blocks[0].given[0] == (3, 3, 5)


def test_nothing_is_spared_before_the_first_block_or_an_unknown_one() -> None:
    for path in ("blocks.0.attn", "elsewhere.2.attn"):
        assert not Replay(model(), (BlockList("blocks"),), [path]).is_worthwhile
    assert Replay(model(), (BlockList("blocks"),), ["blocks.20", "blocks.2"]).first == "blocks.2"


@pytest.mark.parametrize(
    ("path", "spared"),
    [
        ("attentions.0.transformer_blocks.0.attn1", ["resnets.0"]),
        ("attentions.1.transformer_blocks.0.attn1", ["resnets.0", "resnets.1", "attentions.0"]),
        ("resnets.1", []),
        ("", []),
    ],
)
def test_parts_of_a_unet_block_before_the_first_attention_are_spared(
    path: str, spared: list[str]
) -> None:
    made = nn.Module()
    made.down_blocks = nn.ModuleList([nn.Module()])
    for name in ("resnets", "attentions"):
        made.down_blocks[0].add_module(name, nn.ModuleList(Block() for _ in range(2)))
    replay = Replay(made, (BlockList("down_blocks"),), [f"down_blocks.0.{path}".rstrip(".")])
    stop = replay.install(2, [1], lambda: alone([]))
    parts = {name: part for name, part in made.down_blocks[0].named_modules() if "." in name}
    assert [name for name, part in parts.items() if "forward" in part.__dict__] == spared
    stop()
    assert not any("forward" in part.__dict__ for part in parts.values())


@pytest.mark.parametrize(
    ("shape", "rows", "fold"),
    [((6, 4, 8, 8), 3, 2), ((3, 9, 5), 3, 1), ((9, 9, 5), 3, None), ((4, 9, 5), 3, None)],
)
def test_fold_is_told_from_the_main_stream(
    shape: tuple[int, ...], rows: int, fold: int | None
) -> None:
    assert fold_of(torch.zeros(shape), rows) == fold
    assert fold_of(None, rows) is None


def test_leading_rows_are_taken_of_everything_that_has_rows() -> None:
    value = {"frames": torch.zeros(6, 2), "rows": [torch.zeros(3, 1)], "one": torch.zeros(1, 4)}
    taken = leading_rows((value, None, 7), rows=3, kept=2, fold=2)
    assert (taken[0]["frames"].shape, taken[0]["rows"][0].shape) == ((4, 2), (2, 1))
    assert taken[0]["one"].shape == (1, 4)
    assert taken[1:] == (None, 7)
