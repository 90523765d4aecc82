"""However a session ends, the pipeline is what it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from attnctl import AttendAndExcite, HeatMaps, Technique, attach
from attnctl.errors import AttnctlError, UnsupportedModelError
from tests.core.samples import Climb, Failing, Identity, Perturbed, Shift, Temperature
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PIPELINES, build, generate

EVERYTHING = (AttendAndExcite(["cat"]), HeatMaps(), Perturbed(), Shift(), Temperature())
KNOWN = [name for name, entry in PIPELINES.items() if entry.family == "unet"]


@contextmanager
def restored(pipe: DiffusionPipeline) -> Iterator[None]:
    """Check that the block leaves no trace, and that the pipeline still gives the same bits."""
    plain = generate(pipe)
    before = fingerprint(pipe)
    yield
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(plain, generate(pipe))


@pytest.mark.parametrize("name", KNOWN)
def test_a_run_with_every_kind_of_technique_leaves_no_trace(name: str) -> None:
    pipe = build(name)
    with restored(pipe), attach(pipe, EVERYTHING):
        generate(pipe)


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart_alpha", "animatediff", "wan22"])
def test_a_run_of_another_family_leaves_no_trace(name: str) -> None:
    pipe = build(name)
    with restored(pipe), attach(pipe, [HeatMaps(), Temperature(), Shift()]):
        generate(pipe)


def test_a_session_that_never_ran_leaves_no_trace() -> None:
    pipe = build("sd1")
    with restored(pipe):
        session = attach(pipe, EVERYTHING)
        session.detach()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit, MemoryError])
def test_an_exception_inside_attention_leaves_no_trace(error: type[BaseException]) -> None:
    pipe = build("sd1")
    with (
        restored(pipe),
        pytest.raises(error, match="a fault inside attention"),
        attach(pipe, [*EVERYTHING, Failing(error=error)]),
    ):
        generate(pipe)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_gradient_forward_leaves_no_trace(error: type[BaseException]) -> None:
    class Broken(Climb):
        def read(self, call: Any, what: Any, value: Any) -> None:
            raise error("no gradient today")

    pipe = build("sd1")
    with restored(pipe), pytest.raises(error, match="no gradient today"), attach(pipe, Broken()):
        generate(pipe)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_users_callback_leaves_no_trace(error: type[BaseException]) -> None:
    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise error("the user's own")

    pipe = build("sd1")
    with (
        restored(pipe),
        pytest.raises(error, match="the user's own"),
        attach(pipe, EVERYTHING),
    ):
        generate(pipe, callback_on_step_end=callback)


def test_closing_a_generator_that_holds_a_session_leaves_no_trace() -> None:
    pipe = build("sd1")

    def pictures() -> Iterator[torch.Tensor]:
        with attach(pipe, EVERYTHING):
            while True:
                yield generate(pipe)

    with restored(pipe):
        stream = pictures()
        next(stream)
        stream.close()


@pytest.mark.parametrize("impossible", [HeatMaps(where="temporal"), Temperature(where="heads=9")])
def test_an_impossible_third_technique_leaves_no_trace_of_the_first_two(
    impossible: Technique,
) -> None:
    pipe = build("sd1")
    with restored(pipe), pytest.raises(AttnctlError):
        attach(pipe, [Identity(), Shift(), impossible])


class ComputedSlot(Attention):
    """An attention module whose processor cannot be replaced."""

    kept = AttnProcessor2_0()

    @property
    def processor(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.kept


def last_attention(pipe: Any) -> Attention:
    return [module for module in pipe.unet.modules() if isinstance(module, Attention)][-1]


def test_a_slot_that_takes_no_processor_leaves_no_trace_of_the_slots_before_it() -> None:
    pipe = build("sd1")
    last_attention(pipe).__class__ = ComputedSlot
    with (
        restored(pipe),
        pytest.raises(UnsupportedModelError, match="ComputedSlot cannot be replaced"),
    ):
        attach(pipe, Identity())


def test_a_processor_without_a_signature_leaves_no_trace_of_the_slots_before_it() -> None:
    class Unreadable:
        class __call__:  # noqa: N801
            __signature__ = "none"

    pipe = build("sd1")
    plain_processor = last_attention(pipe).processor
    last_attention(pipe).processor = Unreadable()
    before = fingerprint(pipe)
    with pytest.raises(Exception, match="signature"):
        attach(pipe, Identity())

    assert differences(before, fingerprint(pipe)) == []
    last_attention(pipe).processor = plain_processor
    assert generate(pipe).isfinite().all()


def test_a_failure_in_a_second_session_leaves_the_first_one_working() -> None:
    pipe = build("sd1")
    with restored(pipe), attach(pipe, Temperature()):
        alone = generate(pipe)
        with pytest.raises(AttnctlError):
            attach(pipe, [Identity(), HeatMaps(where="temporal")])
        assert torch.equal(alone, generate(pipe))


@pytest.mark.parametrize("first", [0, 1])
def test_two_sessions_may_be_detached_in_any_order(first: int) -> None:
    pipe = build("sd1")
    techniques = (Temperature(where="self"), Shift())
    alone = []
    for technique in techniques:
        with attach(pipe, technique):
            alone.append(generate(pipe))
    with restored(pipe):
        sessions = [attach(pipe, technique) for technique in techniques]
        sessions[first].detach()
        assert torch.equal(generate(pipe), alone[1 - first])
        sessions[1 - first].detach()
        assert not any(session.is_attached for session in sessions)


def test_a_session_may_be_detached_in_the_middle_of_a_run() -> None:
    pipe = build("sd1")

    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        session.detach()
        return values

    with restored(pipe):
        session = attach(pipe, [Temperature(), Climb(), Shift()])
        assert generate(pipe, steps=3, callback_on_step_end=callback).isfinite().all()
        assert not session.is_attached


def test_attributes_set_on_a_controlled_processor_reach_the_original() -> None:
    pipe = build("sd1")
    module = last_attention(pipe)
    original = module.processor
    with attach(pipe, Identity()):
        module.processor.note = 3
        assert module.processor.note == 3
        assert isinstance(module.processor, type(original))
        assert type(original)().__class__ is module.processor.__class__

    assert module.processor is original
    assert original.note == 3
