"""Features kept from one run to another: recording, looking up, refusing what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Technique
from attnctl.calls import RunStart
from attnctl.editing.features import FeatureStore
from attnctl.errors import FeatureError, LayerNotFoundError, SettingError
from attnctl.techniques.recorders import AttentionRecorder, ModuleRecorder
from tests.support.pipelines import build, generate

CONV = "up_blocks.1.resnets.0.conv2"
SITE = "up_blocks.1.attentions.0.transformer_blocks.0.attn1"
TWO = ["a cat", "a frog"]


@dataclass(frozen=True)
class Witness(Technique):
    """Compares what passes with what a store holds."""

    name: ClassVar[str] = "witness"
    store: FeatureStore
    same_items: bool = False

    def begin(self, run: RunStart) -> list[bool]:
        self.store.check(run.fingerprint(), same_items=self.same_items)
        return []

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        kept = self.store.get(call.step.timestep, call.site.path, "query", like=call.query)
        call.state.append(torch.equal(kept, call.query[call.pick(branch="cond", kind="main")]))
        return out

    def end(self, state: list[bool]) -> list[bool]:
        return state


def matches(session: attnctl.Session) -> list[bool]:
    return session._control.runs.result_of("witness")


@pytest.mark.parametrize("name", ["sd1", "flux", "sd3", "pixart_alpha", "animatediff"])
def test_a_recorded_run_is_found_again_by_the_next_one_and_is_not_changed(name: str) -> None:
    pipe, store = build(name), FeatureStore()
    plain = generate(pipe)
    with attnctl.attach(pipe, AttentionRecorder(store)):
        recorded = generate(pipe)
    with attnctl.attach(pipe, Witness(store)) as session:
        generate(pipe)
        seen = matches(session)

    assert torch.equal(plain, recorded)
    assert seen
    assert all(seen)
    assert len(store) == 2 * len(store.timesteps) * len(store.paths)


def test_outputs_of_modules_are_those_of_the_conditional_rows() -> None:
    pipe, store = build("sd1"), FeatureStore()
    seen: list[Tensor] = []
    hook = pipe.unet.get_submodule(CONV).register_forward_hook(
        lambda module, given, output: seen.append(output)
    )
    with attnctl.attach(pipe, ModuleRecorder(store, CONV)):
        generate(pipe, TWO, guidance_scale=5.0)
    hook.remove()

    for timestep, output in zip(store.timesteps, seen, strict=True):
        assert torch.equal(store.get(timestep, CONV, "output"), output[2:])


def test_one_branch_of_a_site_can_be_kept_in_half_the_memory_on_the_cpu() -> None:
    pipe, full = build("sd1"), FeatureStore(offload=True)
    half = FeatureStore(dtype=torch.float16)
    where = f"path={SITE}"
    recorders = [
        AttentionRecorder(full, what="out", branch="uncond", where=where),
        AttentionRecorder(half, what="out", branch="uncond", where=where),
    ]
    with attnctl.attach(pipe, recorders):
        generate(pipe, TWO, guidance_scale=5.0)

    assert full.paths == half.paths == (SITE,)
    assert full.bytes_by_device() == {"cpu": full.nbytes}
    assert half.nbytes * 2 == full.nbytes
    shape = full.get(full.timesteps[0], SITE, "out").shape
    assert shape == (2, 2, 256, 16)


def test_a_missing_timestep_is_an_error_and_never_the_neighbour() -> None:
    store = FeatureStore()
    store.put(981.0, "here", "query", torch.ones(2))

    assert store.has(981.0, "here", "query")
    with pytest.raises(FeatureError, match=r"timestep 980: recorded are 981.*number of steps"):
        store.get(980.0, "here", "query")
    with pytest.raises(FeatureError, match="nothing was recorded there; recorded are 'here'"):
        store.get(981.0, "there", "query")
    with pytest.raises(FeatureError, match="kept of it are 'query'"):
        store.get(981.0, "here", "key")


def test_other_numbers_of_steps_are_refused_at_the_first_missing_step() -> None:
    pipe, store = build("sd1"), FeatureStore()
    with attnctl.attach(pipe, AttentionRecorder(store)):
        generate(pipe, steps=2)
    with attnctl.attach(pipe, Witness(store)), pytest.raises(FeatureError, match="number of steps"):
        generate(pipe, steps=3)


def changed_runs() -> Iterator[tuple[str, str]]:
    yield "size", "latents"
    yield "model", "denoisers"
    yield "scheduler", "scheduler"
    yield "items", "items"


@pytest.mark.parametrize(("what", "named"), list(changed_runs()))
def test_a_run_of_another_kind_is_refused_before_its_first_step(what: str, named: str) -> None:
    from diffusers import EulerDiscreteScheduler

    pipe, store = build("sd1"), FeatureStore()
    with attnctl.attach(pipe, AttentionRecorder(store)):
        generate(pipe)
    if what == "model":
        pipe = build("sd1_deep")
    if what == "scheduler":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    size = {"height": 64, "width": 64} if what == "size" else {}
    prompt = TWO if what == "items" else "a cat"
    steps: list[int] = []
    with (
        attnctl.attach(pipe, Witness(store, same_items=what == "items")),
        pytest.raises(FeatureError, match=named),
    ):
        generate(pipe, prompt, callback_on_step_end=lambda p, i, t, k: steps.append(i) or k, **size)
    assert steps == []


def test_a_store_is_filled_by_one_kind_of_run_until_it_is_cleared() -> None:
    pipe, other, store = build("sd1"), build("sd1_deep"), FeatureStore()
    with attnctl.attach(pipe, Witness(store)), pytest.raises(FeatureError, match="empty"):
        generate(pipe)
    with attnctl.attach(pipe, AttentionRecorder(store)):
        generate(pipe)
    with (
        attnctl.attach(other, AttentionRecorder(store)),
        pytest.raises(FeatureError, match="does not fit"),
    ):
        generate(other)
    store.clear()
    with attnctl.attach(other, AttentionRecorder(store)):
        generate(other)
    assert store.nbytes > 0


def test_a_view_is_kept_without_what_it_looks_at() -> None:
    store, whole = FeatureStore(), torch.zeros(8, 1000)
    store.put(1.0, "here", "output", whole[:1])

    assert store.get(1.0, "here", "output").untyped_storage().nbytes() == store.nbytes


def test_recorders_refuse_what_is_not_there() -> None:
    pipe, store = build("sd1"), FeatureStore()
    with pytest.raises(SettingError, match="must be some of"):
        AttentionRecorder(store, what="map")
    with pytest.raises(SettingError, match="modules is empty"):
        ModuleRecorder(store, ())
    with pytest.raises(LayerNotFoundError):
        attnctl.attach(pipe, ModuleRecorder(store, "up_blocks.7.conv2"))
