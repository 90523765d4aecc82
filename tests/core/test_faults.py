"""Faults that the core must survive: attaching, detaching, targets and prompts.

The numbers are those of the project's fault list.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from attnctl import HeatMaps, attach
from attnctl.errors import (
    AlreadyAttachedError,
    ForeignProcessorError,
    PipelineBusyError,
)
from tests.core.samples import Climb, Failing, Identity, Shift, Temperature
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate


# 1
def test_attaching_a_technique_twice_is_refused_by_its_name_with_a_remedy() -> None:
    pipe = build("sd1")
    before = fingerprint(pipe)
    with pytest.raises(AlreadyAttachedError, match=r"'temperature'.*detach"):
        attach(pipe, [Temperature(), Temperature(factor=2)])
    assert differences(before, fingerprint(pipe)) == []
    with attach(pipe, Temperature()) as session:
        with pytest.raises(AlreadyAttachedError, match=r"'temperature'.*detach"):
            attach(pipe, Temperature(factor=2))
        assert session.is_attached


# 2
def test_detaching_twice_or_after_the_pipeline_is_gone_does_nothing() -> None:
    pipe = build("sd1")
    session = attach(pipe, [Temperature(), Shift()])
    session.detach()
    before = fingerprint(pipe)
    session.detach()
    assert differences(before, fingerprint(pipe)) == []

    session = attach(pipe, Temperature())
    del pipe
    gc.collect()
    session.detach()
    session.detach()
    assert not session.is_attached


# 4
def test_foreign_processors_are_noticed_and_stay_after_detach() -> None:
    pipe = build("sd1")
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    mine = AttnProcessor2_0()
    others = {k: id(p) for k, p in pipe.unet.attn_processors.items() if "mid_block" not in k}
    session = attach(pipe, Temperature())
    attention.set_processor(mine)
    with pytest.raises(ForeignProcessorError, match=r"mid_block.*rebase\(\).*detach"):
        generate(pipe)
    session.detach()

    assert attention.processor is mine
    now = {k: id(p) for k, p in pipe.unet.attn_processors.items() if "mid_block" not in k}
    assert now == others


# 4
def test_rebase_takes_foreign_processors_under_control_and_gives_them_back() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()):
        expected = generate(pipe)
    session = attach(pipe, Temperature())
    theirs = AttnProcessor()
    pipe.unet.set_attn_processor(theirs)
    session.rebase()
    assert torch.allclose(generate(pipe), expected, atol=1e-4)
    session.detach()

    assert all(processor is theirs for processor in pipe.unet.attn_processors.values())


# 6
@pytest.mark.parametrize("error", [RuntimeError, ZeroDivisionError, KeyboardInterrupt])
def test_after_an_error_inside_a_run_the_session_is_attached_and_clean(
    error: type[BaseException],
) -> None:
    pipe = build("sd1")
    with attach(pipe, [Temperature(), HeatMaps(keep_steps=True)]) as session:
        expected = generate(pipe, steps=3)
        heat = session.maps.word("cat", absolute=True)
    raised = error("the user's own")

    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise raised

    with attach(pipe, [Temperature(), HeatMaps(keep_steps=True)]) as session:
        with pytest.raises(error) as caught:
            generate(pipe, "a red dog", steps=3, callback_on_step_end=callback)
        assert caught.value is raised
        with attach(pipe, Failing(error=error)), pytest.raises(error):
            generate(pipe, "a blue frog", steps=3)
        assert session.is_attached
        assert torch.equal(generate(pipe, steps=3), expected)
        assert torch.equal(session.maps.word("cat", absolute=True), heat)


# 6
def test_the_next_run_after_a_broken_one_knows_its_own_prompt() -> None:
    def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("the user's own")

    pipe = build("sd1")
    with attach(pipe, HeatMaps()) as session:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the user's own"):
                generate(pipe, "a red dog", callback_on_step_end=callback)
            generate(pipe, PROMPT)
            assert session.maps.tokens()[1:3] == ["a</w>", "cat</w>"]


# 7
def test_a_run_that_is_cancelled_stops_and_leaves_no_trace() -> None:
    pipe = build("sd1")
    before = fingerprint(pipe)
    shift = Shift()

    def cancel(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return values

    with attach(pipe, shift) as session:
        generate(pipe, steps=5, callback_on_step_end=cancel)
        assert [step.index for step in shift.steps_seen] == [0, 1]
        assert session.is_attached
        assert generate(pipe, steps=2).isfinite().all()
        assert len(shift.steps_seen) == 4

    assert differences(before, fingerprint(pipe), ignore=["pipe attributes"]) == []


# 8
def test_another_pipeline_of_the_same_class_is_not_touched() -> None:
    pipe, other = build("sd1"), build("sd1")
    plain, before = generate(other), fingerprint(other)
    with attach(pipe, [Temperature(), Shift(), Climb()]):
        changed = generate(pipe)
        assert differences(before, fingerprint(other)) == []
        assert torch.equal(plain, generate(other))

    assert not torch.equal(plain, changed)


# 9
def test_a_model_shared_by_two_pipelines_is_controlled_once() -> None:
    pipe = build("sd1")
    sibling = StableDiffusionPipeline.from_pipe(pipe)
    with attach(pipe, Temperature()):
        with pytest.raises(AlreadyAttachedError, match=r"unet.*already controlled"):
            attach(sibling, Shift())
        with pytest.raises(AlreadyAttachedError, match="already controlled"):
            attach(pipe.unet, Identity())
    attach(sibling, Shift()).detach()


# 9
def test_a_scheduler_shared_by_two_pipelines_is_watched_once() -> None:
    pipe, other = build("sd1"), build("sd1")
    other.scheduler = pipe.scheduler
    before = fingerprint(other)
    with attach(pipe, Temperature()):
        shadowed = fingerprint(other)
        with pytest.raises(AlreadyAttachedError, match=r"scheduler.*from_config"):
            attach(other, Shift())
        assert differences(shadowed, fingerprint(other)) == []
    assert differences(before, fingerprint(other)) == []


# 10
def test_a_second_thread_is_refused_while_the_first_one_keeps_its_result() -> None:
    pipe = build("sd1")
    with attach(pipe, [Temperature(), HeatMaps()]) as session:
        expected = generate(pipe, steps=3)
        heat = session.maps.word("cat")
        errors: list[BaseException] = []

        def intrude() -> None:
            try:
                generate(pipe, "a red dog", steps=3)
            except BaseException as error:
                errors.append(error)

        def callback(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> Any:
            if step == 1:
                thread = threading.Thread(target=intrude)
                thread.start()
                thread.join()
            return values

        assert torch.equal(generate(pipe, steps=3, callback_on_step_end=callback), expected)
        assert torch.equal(session.maps.word("cat"), heat)

    assert [type(error) for error in errors] == [PipelineBusyError]


# 10
def test_a_thread_may_take_over_when_the_first_one_is_done() -> None:
    pipe = build("sd1")
    results: list[torch.Tensor] = []
    with attach(pipe, Temperature()):
        here = generate(pipe)
        thread = threading.Thread(target=lambda: results.append(generate(pipe)))
        thread.start()
        thread.join()

    assert torch.equal(results[0], here)


# 11
def test_a_model_saved_while_attached_is_the_clean_model(tmp_path: Path) -> None:
    pipe = build("sd1")
    plain, keys = generate(pipe), list(pipe.unet.state_dict())
    with attach(pipe, [Temperature(), Shift(), Climb()]):
        assert list(pipe.unet.state_dict()) == keys
        pipe.save_pretrained(tmp_path / "pipe")
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "pipe", safety_checker=None)
    loaded.set_progress_bar_config(disable=True)

    assert list(loaded.unet.state_dict()) == keys
    assert torch.equal(generate(loaded), plain)


# 11
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_made_while_attached_is_clean_and_free(how: str, tmp_path: Path) -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    with attach(pipe, [Temperature(), Shift()]):
        steered = generate(pipe)
        parts = {"unet": pipe.unet, "scheduler": pipe.scheduler}
        if how == "deepcopy":
            parts = copy.deepcopy(parts)
        elif how == "pickle":
            parts = pickle.loads(pickle.dumps(parts))
        else:
            torch.save(parts, tmp_path / "parts.pt")
            parts = torch.load(tmp_path / "parts.pt", weights_only=False)
        assert torch.equal(steered, generate(pipe))
        twin = StableDiffusionPipeline(
            **{**pipe.components, **parts}, requires_safety_checker=False
        )
        twin.set_progress_bar_config(disable=True)
        assert torch.equal(plain, generate(twin))

    processors = twin.unet.attn_processors.values()
    assert all(type(processor) is AttnProcessor2_0 for processor in processors)
    assert twin.scheduler.step.__func__ is DDIMScheduler.step
    assert isinstance(twin.unet, UNet2DConditionModel)
