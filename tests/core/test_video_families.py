"""Families of video transformers tell the truth: grids, text positions and rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnctl import attach
from attnctl.calls import AttentionCall
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw

GRIDS = {"hunyuan_video": (2, 3, 5), "ltx": (2, 3, 5), "mochi": (2, 3, 5)}  # frames, rows, columns


def inputs_of(name: str) -> dict[str, Any]:
    """The usual inputs with non-square latents."""
    frames, height, width = GRIDS[name]
    inputs, draw = DENOISERS[name].inputs(), Draw(7)
    if name == "ltx":
        tokens = draw.normal(2, frames * height * width, 4)
        return {**inputs, "hidden_states": tokens, "height": height, "width": width}
    channels = inputs["hidden_states"].shape[1]
    latents = draw.normal(2, channels, frames, 2 * height, 2 * width)
    return {**inputs, "hidden_states": latents}


def calls_of(name: str, inputs: dict[str, Any], **settings: Any) -> list[AttentionCall]:
    watch = Watch(needs_layout=True, **settings)
    model = DENOISERS[name].build()
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    return watch.seen


def moved(name: str, inputs: dict[str, Any], frame: int, row: int, column: int) -> dict[str, Any]:
    """The inputs with another value at one place of the grid."""
    latents = inputs["hidden_states"].clone()
    frames, height, width = GRIDS[name]
    if name == "ltx":
        latents.view(2, frames, height, width, -1)[:, frame, row, column] += 5
    else:
        latents[:, :, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 5
    return {**inputs, "hidden_states": latents}


@pytest.mark.parametrize("name", GRIDS)
def test_a_change_at_one_place_changes_exactly_its_token(name: str) -> None:
    inputs = inputs_of(name)
    place = (1, 2, 3)
    first = calls_of(name, inputs)[0]
    changed = calls_of(name, moved(name, inputs, *place))[0]
    assert first.layout is not None
    assert first.layout.grid == GRIDS[name]
    assert first.layout.is_video
    difference = (first.query - changed.query).abs().sum(dim=(0, 1, 3))
    _, height, width = GRIDS[name]
    token = (place[0] * height + place[1]) * width + place[2]
    assert difference.nonzero().flatten().tolist() == [first.layout.image.start + token]


@pytest.mark.parametrize("name", ["hunyuan_video", "ltx"])
def test_text_lies_where_the_layout_says(name: str) -> None:
    inputs = inputs_of(name)
    changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
    pairs = list(zip(calls_of(name, inputs), calls_of(name, changed), strict=True))
    call, other = next(p for p in pairs if p[0].layout and p[0].layout.text is not None)
    assert call.layout is not None
    assert call.layout.text is not None
    difference = (call.key - other.key).abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert difference == list(range(call.layout.text.start, call.layout.text.stop))


def test_the_refiner_of_the_text_is_no_site() -> None:
    model = DENOISERS["hunyuan_video"].build()
    with attach(model, Watch()) as session:
        paths = [site.path for site in session.sites]
    assert paths == ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"]


def test_mochi_gives_each_row_a_call_of_its_own() -> None:
    calls = calls_of("mochi", inputs_of("mochi"), where="layers=0")
    assert [call.rows[0].branch for call in calls] == ["uncond", "cond"]
    assert [len(call.rows) for call in calls] == [1, 1]
    # The second row's prompt is shorter: its padding is left out.
    tokens = GRIDS["mochi"][0] * GRIDS["mochi"][1] * GRIDS["mochi"][2]
    assert [call.query.shape[2] - tokens for call in calls] == [6, 4]


def test_an_edit_of_one_branch_changes_that_row_of_mochi_alone() -> None:
    class Halves(Watch):
        name = "halves"

        def edit_output(self, call: AttentionCall, out: torch.Tensor) -> torch.Tensor:
            at = call.pick(branch="cond")
            return out.index_copy(0, at, out[at] / 2)

    model, inputs = DENOISERS["mochi"].build(), inputs_of("mochi")
    with torch.no_grad():
        plain = model(**inputs).sample
        with attach(model, Halves(), branches=("uncond", "cond")):
            edited = model(**inputs).sample
    assert torch.equal(edited[0], plain[0])
    assert not torch.equal(edited[1], plain[1])
