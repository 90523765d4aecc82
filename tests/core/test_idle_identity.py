"""Attached with nothing to do, every model gives bit for bit what it gives alone."""

from __future__ import annotations

import pytest
import torch

from attnctl import AttendAndExcite, HeatMaps, attach, until
from attnctl.errors import UnsupportedModelError
from tests.core.samples import Identity, Temperature
from tests.support.denoisers import DENOISERS
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PIPELINES, build, generate

WITHOUT_SDPA = {
    "sana": "linear self-attention: no softmax, so no map",
    "sana_video": "linear self-attention: no softmax, so no map",
    "anyflow_far": "flex attention with a block mask",
    "kandinsky6_sr": "flex attention with a block mask",
}


@pytest.mark.parametrize("name", DENOISERS)
def test_an_idle_session_changes_no_bit_of_a_denoiser(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    plain = entry.run(model)
    before = fingerprint(model)
    with attach(model, Temperature(steps=until(0))):
        idle = entry.run(model)

    assert torch.equal(plain, idle)
    assert differences(before, fingerprint(model)) == []
    assert torch.equal(plain, entry.run(model))


@pytest.mark.parametrize("name", [name for name in DENOISERS if name not in WITHOUT_SDPA])
def test_an_intercepted_denoiser_changes_no_bit_while_nothing_is_edited(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    plain = entry.run(model)
    before = fingerprint(model)
    with attach(model, Identity()) as session:
        intercepted = entry.run(model)
        acted = session.report().active_steps("identity")

    assert torch.equal(plain, intercepted)
    assert acted == (0,)
    assert differences(before, fingerprint(model)) == []


@pytest.mark.parametrize("name", WITHOUT_SDPA)
def test_attention_that_never_reaches_sdpa_is_refused_by_name(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    plain = entry.run(model)
    with (
        attach(model, Identity()),
        pytest.raises(UnsupportedModelError, match="never calls scaled_dot_product_attention"),
    ):
        entry.run(model)

    assert torch.equal(plain, entry.run(model))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_gives_the_same_bits_plain_attached_idle_and_after(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    before = fingerprint(pipe)
    with attach(pipe, Temperature(steps=until(0))):
        idle = generate(pipe)
    with attach(pipe, Identity()):
        intercepted = generate(pipe)

    assert torch.equal(plain, idle)
    assert torch.equal(plain, intercepted)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(plain, generate(pipe))


@pytest.mark.parametrize("name", [n for n, e in PIPELINES.items() if e.family not in (None, "dit")])
def test_reading_maps_changes_no_bit_of_a_known_pipeline(name: str) -> None:
    pipe = build(name)
    plain = generate(pipe)
    with attach(pipe, HeatMaps()) as session:
        watched = generate(pipe)
        heat = session.maps.word("cat")

    assert torch.equal(plain, watched)
    assert heat.isfinite().all()


@pytest.mark.parametrize(
    "technique",
    [
        AttendAndExcite([]),
        AttendAndExcite(["cat"], scale_factor=0),
        AttendAndExcite(["cat"], steps=until(0), thresholds={}),
        Temperature(steps="every 7 ramp 0..0"),
    ],
    ids=["no subject", "no scale", "no step", "no strength"],
)
def test_a_technique_that_is_off_changes_no_bit(technique: Temperature) -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    with attach(pipe, technique) as session:
        assert torch.equal(plain, generate(pipe))
        assert session.report().active_steps(technique.name) == ()
