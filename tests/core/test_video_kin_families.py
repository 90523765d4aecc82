"""Kin of Wan, HunyuanVideo and LTX-Video: their families against the denoisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import attach
from attnctl.calls import AttentionCall
from attnctl.engine.denoiser import DenoiserDriver
from tests.core.extra_row import Extra
from tests.core.samples import Identity, Watch
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import Draw, prediction

# --- denoisers by themselves ------------------------------------------------------------------

ROWS, COLUMNS = 3, 5
FRAMES = {"wan_animate": 5, "anyflow": 3}  # elsewhere 2
PLACE = (1, 2, 3)
PATCH = {"ltx2": 0, "hunyuan_video15": 1}  # side in latents; 0: packed already
FIRST = {  # tokens of history before the video
    "framepack": 2 * 15 + 2 * 3 + 2,
    "helios": 15 + 2 * 3 + 2,
}
# Tokens of a picture, or glyphs, before the text.
TEXT = {"framepack": 5, "hunyuan_video15": 5, "motif_video_wide": 3}
NAMES = [
    "hunyuan_video15",
    "ltx2",
    "wan_vace",
    "skyreels",
    "skyreels_image",
    "chronoedit",
    "framepack",
    "wan_animate",
    "anyflow",
    "helios",
    "motif_video",
    "motif_video_wide",
]


def grid_of(name: str) -> tuple[int, int, int]:
    """Frames, rows and columns."""
    return FRAMES.get(name, 2), ROWS, COLUMNS


def inputs_of(name: str) -> dict[str, Any]:
    """The usual inputs with non-square latents."""
    frames, height, width = grid_of(name)
    inputs, draw, patch = DENOISERS[name].inputs(), Draw(7), PATCH.get(name, 2)
    if patch == 0:
        tokens = draw.normal(2, frames * height * width, 4)
        return {**inputs, "hidden_states": tokens, "height": height, "width": width}
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.dim() == 5 and key != "face_pixel_values":
            inputs[key] = draw.normal(*value.shape[:3], patch * height, patch * width)
    return inputs


def moved(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with another value at one place of the grid."""
    latents, (frame, row, column) = inputs["hidden_states"].clone(), PLACE
    patch = PATCH.get(name, 2)
    if patch == 0:
        latents.view(2, *grid_of(name), -1)[:, frame, row, column] += 5
    else:
        rows, columns = (slice(patch * at, patch * at + patch) for at in (row, column))
        frames = latents.movedim(1 if name == "anyflow" else 2, 1)
        frames[:, frame, :, rows, columns] += 5
    return {**inputs, "hidden_states": latents}


def calls_of(name: str, inputs: dict[str, Any]) -> list[AttentionCall]:
    watch, model = Watch(needs_layout=True), DENOISERS[name].build()
    with attach(model, watch, branches=("uncond", "cond")), torch.no_grad():
        model(**inputs)
    return watch.seen


@pytest.mark.parametrize("name", NAMES)
def test_a_change_at_one_place_changes_exactly_its_token(name: str) -> None:
    inputs = inputs_of(name)
    first, changed = (calls_of(name, i)[0] for i in (inputs, moved(name, inputs)))
    assert first.layout is not None
    assert (first.layout.grid, first.layout.is_video) == (grid_of(name), True)
    assert first.layout.image.start == FIRST.get(name, 0)
    difference = (first.query - changed.query).abs().sum(dim=(0, 1, 3))
    token = (PLACE[0] * ROWS + PLACE[1]) * COLUMNS + PLACE[2]
    assert difference.nonzero().flatten().tolist() == [first.layout.image.start + token]


@pytest.mark.parametrize("name", NAMES)
def test_layouts_fit_the_tokens_of_every_site(name: str) -> None:
    for call in calls_of(name, inputs_of(name)):
        layout, tokens = call.layout, math.prod(grid_of(name))
        first = 0 if call.site.kind == "cross" else FIRST.get(name, 0)
        assert layout is not None
        assert layout.image.start == first
        assert layout.image.stop - layout.image.start == tokens
        if call.site.kind == "joint":
            assert layout.text is not None
            assert layout.text.start == layout.image.stop + TEXT.get(name, 0)
            assert layout.text.stop <= call.key.shape[2]
        else:
            assert (layout.text is None) == (call.site.kind == "self")
            if name != "motif_video_wide" or call.site.kind == "cross":
                assert call.query.shape[2] == first + tokens
        if call.site.kind == "cross":
            assert layout.text == slice(0, call.key.shape[2])


@pytest.mark.parametrize("name", NAMES)
def test_text_lies_where_the_layout_says(name: str) -> None:
    inputs = inputs_of(name)
    changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
    pairs = list(zip(calls_of(name, inputs), calls_of(name, changed), strict=True))
    call, other = next(p for p in pairs if p[0].layout and p[0].layout.text is not None)
    assert call.layout is not None
    assert call.layout.text is not None
    difference = (call.key - other.key).abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    assert difference == list(range(call.layout.text.start, call.layout.text.stop))


def test_the_text_of_hunyuan_video_15_begins_behind_a_picture_and_the_glyphs_that_are_there() -> (
    None
):
    inputs = inputs_of("hunyuan_video15")
    inputs["image_embeds"] = Draw(1).normal(2, 3, 12)
    inputs["encoder_attention_mask_2"][:, 2:] = False
    changed = {**inputs, "encoder_hidden_states": inputs["encoder_hidden_states"] + 1}
    call, other = (calls_of("hunyuan_video15", i)[0] for i in (inputs, changed))
    difference = (call.key - other.key).abs().sum(dim=(0, 1, 3)).nonzero().flatten().tolist()
    start = math.prod(grid_of("hunyuan_video15")) + 3 + 2
    assert call.layout is not None
    assert call.layout.text == slice(start, start + 6)
    assert difference == list(range(start, start + 6))


def test_where_the_text_begins_is_unknown_if_rows_have_glyphs_of_two_lengths() -> None:
    inputs = inputs_of("hunyuan_video15")
    inputs["encoder_attention_mask_2"][1, 2:] = False
    call = calls_of("hunyuan_video15", inputs)[0]
    assert call.layout is not None
    assert (call.layout.grid, call.layout.text) == (grid_of("hunyuan_video15"), None)


def test_blocks_that_read_the_control_clip_come_first_and_are_a_stage_of_their_own() -> None:
    with attach(DENOISERS["wan_vace"].build(), Watch(where="control:self")) as session:
        sites = session.sites
    assert [site.stage for site in sites] == ["control"] * 4 + ["block"] * 4
    assert [site.path.partition(".")[0] for site in sites[::4]] == ["vace_blocks", "blocks"]


def test_sound_is_no_site_of_ltx_2() -> None:
    with attach(DENOISERS["ltx2"].build(), Watch()) as session:
        paths = [site.path.removeprefix("transformer_blocks.") for site in session.sites]
    assert paths == ["0.attn1", "0.attn2", "1.attn1", "1.attn2"]


# --- added rows -------------------------------------------------------------------------------


def last_self(model: torch.nn.Module) -> str:
    """Selects the last site where image tokens attend to image tokens."""
    with attach(model, Identity()) as session:
        paths = [site.path for site in session.sites if site.kind in ("self", "joint")]
    return f"path={paths[-1]}"


@pytest.mark.parametrize("name", NAMES)
def test_an_added_row_without_a_perturbation_equals_its_own(name: str) -> None:
    extra, model, inputs = Extra(is_perturbed=False), DENOISERS[name].build(), inputs_of(name)
    with torch.no_grad():
        plain = prediction(model(**inputs))
        with attach(model, extra, branches=("uncond", "cond")):
            made = prediction(model(**inputs))
    assert made.shape == plain.shape
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    (call,) = extra.seen
    torch.testing.assert_close(
        call.get("cond", "perturbed"), call.get("cond"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_joins_at_the_last_block_equals_one_that_runs_from_the_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = DENOISERS[name].build(), inputs_of(name)
    where = last_self(model)

    def rows() -> Tensor:
        extra = Extra(where=where)
        with attach(model, extra, branches=("uncond", "cond")) as session, torch.no_grad():
            model(**inputs)
        firsts.append(str(session.report()))
        return extra.seen[0].prediction

    firsts: list[str] = []
    replayed = rows()
    monkeypatch.setattr(DenoiserDriver, "_replay", lambda driver: None)
    whole = rows()
    assert replayed.shape[0] == 3
    torch.testing.assert_close(replayed, whole, rtol=1e-4, atol=1e-5)
    assert (whole[2] - whole[1]).abs().max() > 1e-3
    block = where.removeprefix("path=").rpartition(".")[0]
    assert block in firsts[0]
