"""Processors that hold techniques without a session."""

from __future__ import annotations

import pytest
import torch

from attnctl import AttendAndExcite, HeatMaps, Technique, attach, attn_processors
from attnctl.errors import (
    UnsupportedModelError,
)
from tests.core.samples import Climb, Dim, Perturbed, Scores, Shift, Temperature
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "pixart_alpha", "wan"])
def test_processors_do_what_a_session_does_until_the_models_own_come_back(name: str) -> None:
    pipe = build(name)
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    plain, own = generate(pipe), dict(model.attn_processors)
    before = fingerprint(pipe)
    with attach(pipe, [Temperature(), Scores(amount=1.0)]):
        expected = generate(pipe)
    model.set_attn_processor(attn_processors(model, [Temperature(), Scores(amount=1.0)]))
    assert torch.equal(generate(pipe), expected)
    model.set_attn_processor(own)

    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


def test_processors_cover_every_attention_and_keep_unselected_ones() -> None:
    unet = build("sd1").unet
    made = attn_processors(unet, Temperature(where="mid:self"))
    changed = [key for key, processor in made.items() if processor is not unet.attn_processors[key]]

    assert made.keys() == unet.attn_processors.keys()
    assert changed == ["mid_block.attentions.0.transformer_blocks.0.attn1.processor"]


@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        (AttendAndExcite(["cat"]), "uses loss"),
        (HeatMaps(), "uses begin, read"),
        (Climb(), "uses loss"),
        (Shift(), "uses after_step"),
        (Perturbed(), "uses edit_prediction"),
        (Dim(), "uses edit_inputs"),
        (Temperature(steps="0-50%"), r"has a window \(steps=0-50%\)"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_processors_alone_cannot_serve_is_refused(technique: Technique, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{reason}.*attnctl\.attach"):
        attn_processors(build("sd1").unet, technique)
