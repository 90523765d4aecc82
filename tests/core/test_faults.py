"""Faults that the core must survive: attaching, detaching, targets and prompts.

The numbers are those of the project's fault list.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from attnctl import AttendAndExcite, HeatMaps, Technique, attach, until
from attnctl.errors import (
    AlreadyAttachedError,
    ForeignProcessorError,
    LayerNotFoundError,
    PipelineBusyError,
    SchedulerError,
    SettingError,
    UnsupportedModelError,
    WhereError,
    WordNotFoundError,
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


# 12
def test_a_layer_that_is_not_there_gets_the_nearest_names() -> None:
    wanted = "mid_block.attentions.0.transformer_blocks.0.attn3"
    with pytest.raises(LayerNotFoundError, match=r"attn3.*did you mean.*mid_block.*attn1"):
        attach(build("sd1"), Temperature(where=f"path={wanted}"))


# 13
@dataclass(frozen=True)
class ForLoops(Technique):
    """Needs the loop."""

    name: ClassVar[str] = "for-loops"

    def after_step(self, call: Any) -> None:
        return None


def test_what_a_model_cannot_offer_is_refused_by_the_techniques_name() -> None:
    pipe = build("sd1")
    with pytest.raises(UnsupportedModelError, match=r"for-loops.*attach to the pipeline"):
        attach(pipe.unet, ForLoops())
    with pytest.raises(UnsupportedModelError, match=r"heat-maps needs .*supported"):
        attach(build("aura_flow"), HeatMaps(where="all"))
    with pytest.raises(UnsupportedModelError, match="no denoiser with attention"):
        attach(pipe.vae.decoder.conv_in, Temperature())


@pytest.mark.parametrize(
    ("target", "techniques", "message"),
    [
        (StableDiffusionPipeline, Temperature(), r"not the class StableDiffusionPipeline"),
        (None, Temperature, r"add parentheses|not iterable"),
        (None, [Temperature], r"add parentheses"),
        (None, ["temperature"], r"takes techniques"),
    ],
)
def test_what_is_no_pipeline_or_no_technique_is_refused(
    target: Any, techniques: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        attach(build("sd1") if target is None else target, techniques)


# 14
def test_a_head_that_is_not_there_is_refused_with_layer_and_count() -> None:
    with pytest.raises(WhereError, match=r"head 2 of .*attn1, which has 2 heads \(0-1\)"):
        attach(build("sd1"), Temperature(where="mid:self:heads=0+2"))


# 15
@pytest.mark.parametrize("technique", [AttendAndExcite, HeatMaps])
def test_a_word_that_is_not_in_the_prompt_is_refused_before_the_first_forward(
    technique: type[Technique],
) -> None:
    pipe = build("sd1")
    forwards: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda *call: forwards.append(1))
    with (
        attach(pipe, technique(["whale"])),  # pyright: ignore[reportCallIssue]
        pytest.raises(WordNotFoundError, match=r"'whale' is not in the prompt.*frog"),
    ):
        generate(pipe)

    assert forwards == []


# 15
def test_a_word_of_several_tokens_counts_by_its_last_one_and_by_its_first_occurrence() -> None:
    pipe = build("sd1")
    prompt = "a whale and a cat and a whale"
    spelled = pipe.tokenizer("whale", add_special_tokens=False).input_ids
    settings = {"steps": until(1), "thresholds": {}, "resolution": 8}
    with attach(pipe, AttendAndExcite(["whale"], **settings)):  # pyright: ignore[reportArgumentType]
        by_word = generate(pipe, prompt)
    position = 1 + len(spelled)  # BOS, "a", then the pieces
    with attach(pipe, AttendAndExcite([position], **settings)):  # pyright: ignore[reportArgumentType]
        assert torch.equal(by_word, generate(pipe, prompt))
    assert len(spelled) > 1


# 15
def test_a_word_that_was_cut_off_is_refused_and_the_cut_is_named() -> None:
    pipe = build("sd1")
    with (
        attach(pipe, HeatMaps(["frog"])),
        pytest.raises(WordNotFoundError, match=r"'frog'.*75 .*cut off"),
    ):
        generate(pipe, "a cat " * 60 + "frog")


# 16
@pytest.mark.parametrize(
    "prompt",
    ["", "   ", "\N{FROG FACE} \u05e9\u05dc\u05d5\u05dd", "a\0cat", "cat " * 25_000],
    ids=["empty", "blank", "emoji", "nul", "100 kB"],
)
def test_any_prompt_works(prompt: str) -> None:
    pipe = build("sd1")
    plain = generate(pipe, prompt, steps=1)
    excite = AttendAndExcite([2], thresholds={}, resolution=8)
    with attach(pipe, [HeatMaps(), excite]) as session:
        assert generate(pipe, prompt, steps=1).isfinite().all()
        assert session.maps.token(1).isfinite().all()
    with attach(pipe, HeatMaps()):
        assert torch.equal(plain, generate(pipe, prompt, steps=1))


# 17
def test_each_prompt_of_a_batch_has_its_own_words() -> None:
    pipe = build("sd1")
    prompts = ["a cat and a frog", "a frog and a cat"]
    with attach(pipe, HeatMaps()) as session:
        generate(pipe, prompts)
        both = [session.maps.raw("cat", item=i) for i in range(2)]
        assert torch.equal(both[1], session.maps.token(5, item=1, absolute=True))
        for i, prompt in enumerate(prompts):
            generate(pipe, prompt, seed=i)
            assert torch.allclose(session.maps.raw("cat"), both[i], atol=1e-5)


# 18
def test_embeddings_instead_of_prompts_are_refused_where_words_are_wanted() -> None:
    pipe = build("sd1")
    embeds, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    options: dict[str, Any] = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "num_inference_steps": 1,
        "output_type": "latent",
    }
    with attach(pipe, HeatMaps()) as session:
        generate(pipe)
        pipe(**options)
        assert session.maps.token(2).isfinite().all()
        with pytest.raises(WordNotFoundError, match=r"token\(position\)"):
            session.maps.word("cat")
    with attach(pipe, HeatMaps(["cat"])), pytest.raises(WordNotFoundError, match="prompt_embeds"):
        pipe(**options)


# 18
def test_a_negative_prompt_beside_embeddings_is_not_taken_for_the_prompt() -> None:
    pipe = build("sd1")
    embeds, _ = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    with attach(pipe, HeatMaps(["dog"])), pytest.raises(WordNotFoundError, match="prompt_embeds"):
        pipe(prompt_embeds=embeds, negative_prompt="a dog", num_inference_steps=1)


def test_an_earlier_call_that_failed_leaves_no_prompt_behind() -> None:
    pipe = build("sd1")
    with attach(pipe, HeatMaps()) as session:
        for _ in range(3):
            with pytest.raises(ValueError, match="timesteps"):
                generate(pipe, "a red dog", timesteps=[3], sigmas=[0.5])
            generate(pipe, PROMPT)
            assert session.maps.tokens()[1:3] == ["a</w>", "cat</w>"]


def test_a_scheduler_that_was_replaced_is_an_error_with_advice() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(SchedulerError, match="scheduler first, then attach"):
            generate(pipe)


def test_a_model_that_was_replaced_is_an_error_with_advice() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()):
        pipe.unet = build("sd1", seed=1).unet
        with pytest.raises(SchedulerError, match="detach and attach again"):
            generate(pipe)


def test_settings_of_a_session_cannot_change_with_a_second_one() -> None:
    pipe = build("sd1")
    with attach(pipe, Temperature()), pytest.raises(AlreadyAttachedError, match="first session"):
        attach(pipe, Shift(), branches=("cond",))
    with pytest.raises(SettingError, match="unknown kernel 'flsh'"):
        attach(pipe, Shift(), kernel="flsh")
