"""Faults that the core must survive: settings, sizes, precision and masks.

The numbers are those of the project's fault list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from attnctl import AttendAndExcite, AttentionCall, HeatMaps, Technique, attach, until
from attnctl.calls import PredictionCall
from attnctl.errors import NotANumberError, SettingError
from attnctl.loading import check_dtype, load_pipeline
from tests.core.claims import Probabilities
from tests.core.samples import Identity, Shift, Temperature, Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate

NAN, INFINITE = float("nan"), float("inf")


# 19
@pytest.mark.parametrize(
    "settings",
    [
        {"scale_factor": NAN},
        {"scale_factor": INFINITE},
        {"scale_factor": -1.0},
        {"scale_factor": True},
        {"scale_factor": "20"},
        {"scale_range": (1.0,)},
        {"scale_range": (1.0, NAN)},
        {"scale_range": (1.0, -0.5)},
        {"thresholds": {0: 1.5}},
        {"thresholds": {0: NAN}},
        {"thresholds": {-1: 0.5}},
        {"thresholds": {1.5: 0.5}},
        {"thresholds": {True: 0.5}},
        {"thresholds": [0.5]},
        {"sigma": 0.0},
        {"kernel_size": 4},
        {"kernel_size": 0},
        {"max_refinement_steps": 0},
        {"resolution": 0},
        {"resolution": (16,)},
        {"resolution": (16, -1)},
        {"subjects": [""]},
        {"subjects": [-1]},
        {"subjects": [1.5]},
        {"subjects": [["cat"], "frog"]},
        {"subjects": 3.5},
        {"steps": "50%-20%"},
        {"steps": "0-150%"},
        {"where": "nowhere"},
    ],
    ids=str,
)
def test_impossible_settings_are_refused_when_the_technique_is_made(
    settings: dict[str, Any],
) -> None:
    with pytest.raises(SettingError, match=r".{20}"):
        AttendAndExcite(**settings)


# 20
@pytest.mark.parametrize("steps", ["0-0", "0-0%", "0-1", "0-100%", "5-", "every 3", "ramp 1..0"])
@pytest.mark.parametrize("total", [1, 2])
def test_runs_of_one_step_and_empty_windows_work(steps: str, total: int) -> None:
    pipe = build("sd1")
    techniques: list[Technique] = [
        Temperature(steps=steps),
        Shift(steps=steps),
        AttendAndExcite([2], steps=steps, resolution=8),
        HeatMaps(steps=steps),
    ]
    with attach(pipe, techniques) as session:
        assert generate(pipe, steps=total).isfinite().all()
        acted = session.report().active_steps("temperature")

    assert acted == techniques[0].steps.active_steps(total)


# 21
@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "wan"])
def test_steps_outside_a_window_are_bitwise_plain(name: str) -> None:
    pipe = build(name)
    late = generate(pipe, steps=3)
    start = torch.zeros(0)

    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        nonlocal start
        if step == 1:
            start = values["latents"].clone()
        return values

    with attach(pipe, [Temperature(steps="2-"), Shift(steps="2-")]):
        changed = generate(pipe, steps=3, callback_on_step_end=callback)
    steered_start = start
    generate(pipe, steps=3, callback_on_step_end=callback)

    assert torch.equal(steered_start, start)
    assert not torch.equal(late, changed)


# 22
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 56), (40, 24), (88, 8), (104, 24)])
def test_odd_sizes_work_with_every_kind_of_access(height: int, width: int) -> None:
    pipe = build("sd1_deep")
    plain = generate(pipe, height=height, width=width)
    with attach(pipe, [Identity(), HeatMaps(), Probabilities(steps=until(0))]) as session:
        assert torch.equal(plain, generate(pipe, height=height, width=width))
        heat = session.maps.word("cat")
    with attach(pipe, [AttendAndExcite(["cat"], thresholds={}), Probabilities(where="mid")]):
        assert generate(pipe, height=height, width=width).isfinite().all()

    assert heat.shape == (height // 2, width // 2)


@dataclass(frozen=True)
class Loud(Technique):
    """Makes scores overflow in half precision."""

    name: ClassVar[str] = "loud"

    def edit_qkv(self, call: AttentionCall) -> None:
        call.query = torch.full_like(call.query, 300.0)
        call.key = torch.full_like(call.key, 300.0)


# 23
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_that_overflow_half_precision_are_kept_in_float32(dtype: torch.dtype) -> None:
    model = build("sd1").unet.to(dtype)
    sample, text = torch.zeros(1, 4, 16, 16, dtype=dtype), torch.zeros(1, 77, 32, dtype=dtype)
    watch = Watch()
    with attach(model, [Loud(where="mid"), Probabilities(where="mid"), watch]), torch.no_grad():
        assert model(sample, 5, text).sample.isfinite().all()

    call = next(call for call in watch.seen if call.site.stage == "mid")
    assert call.columns([0, 1]).isfinite().all()
    assert call.columns([0]).dtype == torch.float32


@dataclass(frozen=True)
class Poison(Technique):
    """Makes the prediction infinite."""

    name: ClassVar[str] = "poison"

    def edit_prediction(self, call: PredictionCall) -> None:
        call.add(call.get("cond") * INFINITE)


# 23
def test_a_prediction_that_is_not_finite_names_technique_and_step() -> None:
    pipe = build("sd1")
    generate(pipe)
    before = fingerprint(pipe)
    with (
        pytest.raises(NotANumberError, match=r"'poison' at step 1 of unet.*lower the scale"),
        attach(pipe, Poison(steps="1-")),
    ):
        generate(pipe)

    assert differences(before, fingerprint(pipe)) == []


# 24
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
def test_a_dtype_that_the_device_cannot_compute_in_is_refused_before_loading(
    dtype: torch.dtype,
) -> None:
    with pytest.raises(SettingError, match=r"cpu cannot compute in .*can in torch\.float32.*dtype"):
        load_pipeline("no/such-model", dtype=dtype)


# 24
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_works_on_a_cpu_with_gradients_and_maps(dtype: torch.dtype) -> None:
    check_dtype(dtype, "cpu")
    pipe = build("sd1")
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.to(dtype)
    plain = generate(pipe)
    techniques = [AttendAndExcite([2, 5], resolution=8, thresholds={}), HeatMaps()]
    with attach(pipe, techniques) as session:
        ours = generate(pipe)
        heat = session.maps.word("cat")

    assert ours.dtype == plain.dtype
    assert ours.isfinite().all()
    assert not torch.equal(ours, plain)
    assert heat.dtype == torch.float32
    assert heat.isfinite().all()
    assert session.report().warnings == []


@dataclass(frozen=True)
class Forbid(Technique):
    """Forbids every key of the first query, several times over."""

    name: ClassVar[str] = "forbid"

    def edit_qkv(self, call: AttentionCall) -> None:
        bias = torch.zeros(1, 1, call.query.shape[2], call.key.shape[2])
        bias[:, :, 0] = torch.finfo(call.query.dtype).min / 2
        for _ in range(3):
            call.add_bias(bias)


# 25
@pytest.mark.parametrize("map_editor", [(), (Probabilities(),)], ids=["fused", "explicit"])
def test_a_query_without_any_key_gives_no_nan(map_editor: tuple[Technique, ...]) -> None:
    pipe = build("sd1")
    with attach(pipe, [Forbid(), *map_editor, HeatMaps()]) as session:
        assert generate(pipe).isfinite().all()
        assert session.maps.raw("cat").isfinite().all()


@dataclass(frozen=True)
class Half(Technique):
    """Forbids half the keys of the conditional rows."""

    name: ClassVar[str] = "half"

    def edit_qkv(self, call: AttentionCall) -> None:
        low = torch.finfo(call.query.dtype).min / 2
        bias = torch.zeros(1, 1, 1, call.key.shape[2])
        bias[..., call.key.shape[2] // 2 :] = low
        call.add_bias(bias, at=call.pick(branch="cond"))


def test_a_bias_reaches_its_rows_alone_on_every_path() -> None:
    pipe = build("sd1")
    watch = Watch(where="mid:cross")
    with attach(pipe, [Half(where="mid:cross"), watch]):
        fused = generate(pipe)
    with attach(pipe, [Half(where="mid:cross"), Probabilities(where="mid:cross")]):
        explicit = generate(pipe)

    call = watch.seen[0]
    uncond, cond = call.masses(torch.ones(77, 1).cumsum(0).gt(38).float(), call.pick()).sum((1, 2))
    assert cond < 1e-6
    assert uncond > 1
    assert torch.allclose(fused, explicit, atol=1e-4)
    expected = F.scaled_dot_product_attention(
        call.query, call.key[:, :, :38], call.value[:, :, :38], scale=call.scale
    )[1]
    masked = call.attend(call.query, call.key, call.value, call.mask)[1]
    assert torch.allclose(masked, expected, atol=1e-5)
