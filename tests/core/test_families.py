"""Families tell the truth: grids and text positions against the tokens that really arrive."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor

from attnctl import attach, list_families
from attnctl.calls import AttentionCall
from attnctl.families import UNKNOWN, find_family
from attnctl.families.aura_flow import REGISTERS
from tests.core.samples import Watch
from tests.support.denoisers import DENOISERS, family_names
from tests.support.denoisers.common import grid_positions
from tests.support.denoisers.entry import Draw
from tests.support.pipelines import PIPELINES, build, generate

# Latent height and width; odd and prime sides where the model takes them.
WIDE: dict[str, tuple[int, int]] = {
    "sd1": (7, 13),
    "sd2": (5, 9),
    "sdxl": (6, 11),
    "animatediff": (6, 10),
    "kandinsky3": (16, 8),
    "unet_unconditional": (6, 10),
    "sd3": (6, 10),
    "sd35": (10, 6),
    "flux": (3, 5),
    "flux_dev": (5, 3),
    "flux2": (3, 5),
    "chroma": (5, 3),
    "bria": (3, 5),
    "ovis_image": (5, 3),
    "bria_fibo": (3, 5),
    "flux3": (5, 3),
    "krea2": (3, 5),
    "lumina2": (6, 10),
    "longcat_image": (3, 5),
    "qwen_image": (3, 5),
    "pixart": (6, 10),
    "sana": (5, 7),
    "hunyuan_dit": (6, 10),
    "auraflow": (4, 8),
    "cogview3": (6, 10),
    "cogview4": (10, 6),
    "cogvideox": (6, 10),
    "wan": (6, 10),
    "wan_image": (10, 6),
}


CONVOLVED = frozenset({"sd1", "sd2", "sdxl", "kandinsky3", "unet_unconditional"})
# Text that attends to itself before the image does.
TEXT_MIXED = frozenset({"flux3", "krea2", "lumina2"})
PACKED = frozenset(
    {
        *("flux", "flux_dev", "flux2", "flux3", "chroma", "bria", "bria_fibo", "ovis_image"),
        *("longcat_image", "qwen_image", "krea2"),
    }
)


def packed_inputs(inputs: dict[str, Any], draw: Draw, height: int, width: int) -> dict[str, Any]:
    """Latents as a list of tokens, and what tells where they lie."""
    changed: dict[str, Any] = {"hidden_states": draw.normal(2, height * width, 4)}
    if "img_shapes" in inputs:
        changed["img_shapes"] = [[(1, height, width)]] * 2
    elif "position_ids" in inputs:
        places = grid_positions(1, height, width)
        text = inputs["encoder_hidden_states"].shape[1]
        changed["position_ids"] = torch.cat([inputs["position_ids"][:text], places])
    else:
        ids = torch.zeros(height * width, inputs["img_ids"].shape[-1])
        ids[:, 1:3] = grid_positions(1, height, width)[:, 1:]
        changed["img_ids"] = ids if inputs["img_ids"].dim() == 2 else ids.repeat(2, 1, 1)
    if "attention_mask" in inputs:
        text = inputs["encoder_hidden_states"].shape[1]
        seen = torch.ones(2, height * width, dtype=torch.bool)
        changed["attention_mask"] = torch.cat([inputs["attention_mask"][:, :text], seen], dim=1)
    return changed


def wide_inputs(name: str, seed: int = 0) -> dict[str, Any]:
    """The usual inputs of a denoiser with non-square latents."""
    height, width = WIDE[name]
    inputs = DENOISERS[name].inputs(seed)
    draw = Draw(seed + 100)
    if name in PACKED:
        return {**inputs, **packed_inputs(inputs, draw, height, width)}
    latents = "sample" if "sample" in inputs else "hidden_states"
    inputs[latents] = draw.normal(*inputs[latents].shape[:-2], height, width)
    if name == "cogvideox":
        grid = (height // 2, width // 2)
        inputs["image_rotary_emb"] = get_3d_rotary_pos_embed(
            16, ((0, 0), grid), grid, 3, device="cpu"
        )
    if name == "lumina2":
        inputs["encoder_attention_mask"] = torch.ones(2, 6, dtype=torch.long)
    if name == "hunyuan_dit":
        tokens = height * width // 4
        inputs["image_rotary_emb"] = (draw.normal(tokens, 8), draw.normal(tokens, 8))
    return inputs


def calls_of(name: str, inputs: dict[str, Any]) -> list[AttentionCall]:
    model = DENOISERS[name].build()
    # Sana's self-attention is linear: it never calls the attention that techniques act on.
    watch = Watch(where="cross" if name == "sana" else "all", needs_layout=True)
    with attach(model, watch), torch.no_grad():
        model(**inputs)
    return watch.seen


@pytest.mark.parametrize("name", WIDE)
def test_grids_of_non_square_latents_are_those_of_the_tokens(name: str) -> None:
    for call in calls_of(name, wide_inputs(name)):
        layout, queries = call.layout, call.query.shape[2]
        assert layout is not None
        frames, height, width = layout.grid
        assert height / width == pytest.approx(WIDE[name][0] / WIDE[name][1], rel=0.3)
        if layout.fold == "positions":
            assert (queries, call.fold) == (frames, height * width)
            continue
        assert call.fold == (frames if layout.fold == "frames" else 1)
        tokens = height * width * (1 if layout.fold == "frames" else frames)
        assert layout.image.stop - layout.image.start == tokens
        joint_text = 0 if call.site.kind != "joint" or layout.text is None else text_length(call)
        registers = REGISTERS if name == "auraflow" else 0
        assert queries == tokens + joint_text + registers


def text_length(call: AttentionCall) -> int:
    assert call.layout is not None
    assert call.layout.text is not None
    return call.layout.text.stop - call.layout.text.start


@pytest.mark.parametrize("name", WIDE)
def test_rows_and_columns_are_not_swapped(name: str) -> None:
    if name in ("animatediff", "sana"):
        pytest.skip("other layers spread a change; the plain U-Net and PixArt have the same grid")
    inputs = wide_inputs(name)
    changed = dict(inputs)
    latents = "sample" if "sample" in inputs else "hidden_states"
    if name in PACKED:
        cells = inputs[latents].unflatten(1, WIDE[name]).clone()
        cells[:, 0] += 5.0
        changed[latents] = cells.flatten(1, 2)
    else:
        changed[latents] = inputs[latents].clone()
        changed[latents][..., 0, :] += 5.0
    before, after = (first_image_call(calls_of(name, i)) for i in (inputs, changed))
    assert before.layout is not None
    difference = (after.query - before.query).abs().sum(dim=(0, 1, 3))[before.layout.image]
    grid = difference.reshape(before.layout.grid)

    by_row, by_column = grid.sum(dim=(0, 2)), grid.sum(dim=(0, 1))
    assert by_row.max() / by_row.min() > by_column.max() / by_column.min()
    if name not in CONVOLVED:  # a convolution spreads the change first
        assert torch.all(by_row[1:] < 1e-3 * by_row[0])


def first_image_call(calls: list[AttentionCall]) -> AttentionCall:
    return next(call for call in calls if call.site.kind in ("self", "joint"))


@pytest.mark.parametrize("name", [name for name in WIDE if name != "unet_unconditional"])
@pytest.mark.parametrize("token", [0, 3])
def test_a_changed_prompt_token_changes_exactly_its_own_key(name: str, token: int) -> None:
    inputs = wide_inputs(name)
    changed = dict(inputs)
    changed["encoder_hidden_states"] = inputs["encoder_hidden_states"].clone()
    changed["encoder_hidden_states"][:, token] += 1.0
    pairs = list(zip(calls_of(name, inputs), calls_of(name, changed), strict=True))
    with_text = [pair for pair in pairs if pair[0].layout and pair[0].layout.text is not None]
    assert with_text
    # Joint blocks mix text and picture, so only the first one shows the prompt as it is.
    joint = [pair for pair in with_text if pair[0].site.kind == "joint"]
    for before, after in joint[:1] if joint else with_text:
        assert before.layout is not None
        assert before.layout.text is not None
        keys = changed_keys(before.key, after.key)
        if name in TEXT_MIXED:
            assert keys == list(range(before.layout.text.start, before.layout.text.stop))
            continue
        assert keys == [before.layout.text.start + token]
        second = inputs.get("encoder_hidden_states_t5", torch.zeros(1, 0)).shape[1]
        assert text_length(before) == inputs["encoder_hidden_states"].shape[1] + second


def changed_keys(before: Tensor, after: Tensor) -> list[int]:
    difference = (before - after).abs().amax(dim=(0, 1, 3))
    return difference.gt(1e-4 * difference.max()).nonzero().flatten().tolist()


@pytest.mark.parametrize("side", [7, 8, 9, 10, 15, 16, 17, 31])
def test_a_unet_rounds_odd_sides_up_at_each_level(side: int) -> None:
    pipe = build("sd1_deep")
    watch = Watch(where="self", needs_layout=True)
    with attach(pipe.unet, watch), torch.no_grad():
        pipe.unet(torch.zeros(1, 4, side, side + 2), 5, torch.zeros(1, 77, 32))

    for call in watch.seen:
        assert call.layout is not None
        assert math.prod(call.layout.grid) == call.query.shape[2]
    assert {call.layout.grid[1] for call in watch.seen if call.layout} == {
        math.ceil(side / 2**level) for level in (0, 1, 2)
    }


@pytest.mark.parametrize("name", [n for n, e in PIPELINES.items() if e.family is not None])
def test_layouts_hold_in_a_pipelines_own_run(name: str) -> None:
    watch = Watch(needs_layout=True)
    with attach(build(name), watch) as session:
        generate(session._control.pipe)  # pyright: ignore[reportPrivateUsage]

    for call in watch.seen:
        assert call.layout is not None
        assert call.query.shape[0] == len(call.rows) * call.fold
        assert call.layout.image.stop <= call.query.shape[2]
        if call.layout.text is not None:
            assert call.layout.text.stop <= call.key.shape[2]


@pytest.mark.parametrize("name", family_names())
def test_every_denoiser_of_a_family_is_found_by_its_class(name: str) -> None:
    family = find_family(DENOISERS[name].build())

    assert family.is_known
    assert family in list_families()
    assert DENOISERS[name].model_class in family.classes


# A U-Net of diffusers' own subclass: it inherits the family, and the layout holds for it too.
INHERITED = {"dreamlite": "UNet (SD 1.x, 2.x, SDXL)"}


@pytest.mark.parametrize("name", [n for n, e in DENOISERS.items() if e.family is None])
def test_other_denoisers_have_no_family_unless_they_inherit_one(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    if name not in INHERITED:
        assert find_family(model) is UNKNOWN
        return
    assert find_family(model).name == INHERITED[name]
    for call in calls_of(name, entry.inputs()):
        assert call.layout is not None
        assert math.prod(call.layout.grid) == call.query.shape[2]


def test_family_records_have_names_and_classes_of_their_own() -> None:
    families = list_families()
    classes = [name for family in families for name in family.classes]

    assert len({family.name for family in families}) == len(families) >= 7
    assert len(set(classes)) == len(classes)
