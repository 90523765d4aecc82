"""Inversion inside genuine tiny pipelines of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import RFControl, TrajectoryReplay
from attnctl.editing.features import FeatureStore
from attnctl.errors import FeatureError, SettingError, UnsupportedModelError
from attnctl.inversion import Inversion, invert, reconstruct, sampler_of
from attnctl.inversion.hosts import Call, run_pipeline, scheduled, working_latents
from attnctl.techniques.recorders import AttentionRecorder
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate, picture
from tests.support.pipelines.calls import ARGUMENTS

FAMILIES = ("sd1", "sdxl", "sd3", "flux", "flux_dev", "pixart_alpha")
FLOW = ("sd3", "flux", "flux_dev")
STEPS = 4


def options(pipe: Any) -> dict[str, Any]:
    """What the tiny pipeline of a family must be called with, beside its size."""
    given = ARGUMENTS[type(pipe).__name__]()
    return {name: value for name, value in given.items() if name not in ("height", "width")}


def inverted(pipe: Any, prompt: str = "a cat", **settings: Any) -> Inversion:
    return invert(pipe, picture(), prompt, steps=STEPS, options=options(pipe), **settings)


def soften(pipe: Any) -> None:
    """Make a random denoiser smooth: iterations towards a fixed point need a small slope."""
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    last = model.conv_out if hasattr(model, "conv_out") else model.proj_out
    last.weight.data.mul_(0.2)


def round_trip_error(pipe: Any, inversion: Inversion) -> float:
    return float((reconstruct(pipe, inversion) - inversion.clean).square().mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_refinement_brings_the_source_back_better_than_explicit_steps(name: str) -> None:
    pipe = build(name)
    soften(pipe)
    plain, refined = inverted(pipe, refinements=0), inverted(pipe, refinements=4)

    assert plain.evaluations == STEPS
    assert refined.evaluations == 5 * STEPS
    assert round_trip_error(pipe, refined) < round_trip_error(pipe, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_inversion_leaves_the_pipeline_as_it_was(name: str) -> None:
    pipe = build(name)
    before, scheduler = generate(pipe), pipe.scheduler
    known = fingerprint(pipe)
    inverted(pipe)
    inverted(pipe, techniques=[AttentionRecorder(FeatureStore())])

    assert pipe.scheduler is scheduler
    assert differences(known, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), before)


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize(
    ("method", "evaluations"), [("rf-solver", 8), ("fireflow", 5), ("rf-inversion", 4)]
)
def test_other_methods_run_and_count_their_evaluations(
    name: str, method: str, evaluations: int
) -> None:
    pipe = build(name)
    inversion = inverted(pipe, method=method)

    assert inversion.evaluations == evaluations
    assert inversion.trajectory is not None
    assert inversion.trajectory.timesteps == Trajectories.timesteps(pipe)
    assert torch.equal(inversion.trajectory.noise, inversion.noise)
    assert torch.equal(inversion.trajectory.clean, inversion.clean)


class Trajectories:
    """What the stock sampler of a pipeline tells the denoiser."""

    @staticmethod
    def timesteps(pipe: Any) -> tuple[float, ...]:
        seen: list[float] = []
        sampler = sampler_of(pipe)
        with scheduled(pipe, sampler):
            generate(
                pipe, steps=STEPS,
                callback_on_step_end=lambda p, i, t, k: seen.append(float(t)) or k,
            )  # fmt: skip
        return tuple(seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_replayed_source_ends_at_its_latents_bit_for_bit(name: str) -> None:
    pipe = build(name)
    inversion = inverted(pipe, refinements=0, nudge=1.15)
    call = Call(["a cat", "a frog"], inversion.size, STEPS, 3.0, options=options(pipe))
    start = working_latents(pipe, torch.cat([inversion.noise] * 2))
    replay = TrajectoryReplay(inversion.trajectory)
    latents, _ = run_pipeline(pipe, sampler_of(pipe), start, call, [replay])
    plain, _ = run_pipeline(pipe, sampler_of(pipe), start, call)

    assert torch.equal(latents[:1], inversion.clean.to(latents))
    assert torch.equal(latents[1:], plain[1:])  # the target is not touched
    assert not torch.equal(plain[:1], latents[:1])
    bare = inverted(pipe, refinements=0)
    assert torch.allclose(inversion.clean, 1.15 * bare.clean)


def controlled(pipe: Any, inversion: Inversion, control: RFControl | None) -> Tensor:
    """Two rows from one noise, with or without the control."""
    call = Call(["a cat", "a frog"], inversion.size, STEPS, 3.0, options=options(pipe))
    start = working_latents(pipe, torch.cat([inversion.noise] * 2))
    techniques = [] if control is None else [control]
    return run_pipeline(pipe, sampler_of(pipe), start, call, techniques)[0]


@pytest.mark.parametrize("name", FLOW)
def test_a_full_pull_ends_at_the_source_whatever_the_model(name: str) -> None:
    pipe = build(name)
    inversion = inverted(pipe, refinements=0)
    control = RFControl(inversion.clean, eta=1.0, steps="0-100%")
    latents = controlled(pipe, inversion, control)

    assert torch.allclose(latents, inversion.clean.expand_as(latents), atol=1e-5)


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("control", [{"eta": 0.0}, {"eta": 1.0, "steps": "0-0"}])
def test_no_pull_is_the_plain_run_bit_for_bit(name: str, control: dict[str, Any]) -> None:
    pipe = build(name)
    inversion = inverted(pipe, refinements=0)
    plain = controlled(pipe, inversion, None)

    assert torch.equal(controlled(pipe, inversion, RFControl(inversion.clean, **control)), plain)


def test_the_pull_takes_the_chosen_items_alone_and_falls_with_its_decay() -> None:
    pipe = build("sd3")
    inversion = inverted(pipe, refinements=0)
    plain = controlled(pipe, inversion, None)
    one = controlled(pipe, inversion, RFControl(inversion.clean, items=(1,), steps="0-100%"))
    full = controlled(pipe, inversion, RFControl(inversion.clean, steps="0-100%"))
    less = controlled(pipe, inversion, RFControl(inversion.clean, decay=2.0, steps="0-100%"))

    assert torch.equal(one[0], plain[0])
    assert torch.equal(one[1], full[1])
    near, far = (float((x - inversion.clean).norm()) for x in (full, less))
    assert near < far < float((plain - inversion.clean).norm())


def test_features_recorded_while_inverting_fit_the_run_that_follows() -> None:
    pipe, store = build("sd1"), FeatureStore(offload=True)
    inversion = inverted(pipe, refinements=0, techniques=[AttentionRecorder(store)])
    again = FeatureStore()
    call = Call(["a cat"], inversion.size, STEPS)
    start = working_latents(pipe, inversion.noise)
    run_pipeline(pipe, sampler_of(pipe), start, call, [AttentionRecorder(again)])

    assert store.timesteps == again.timesteps
    assert store.fingerprint == again.fingerprint
    assert store.bytes_by_device() == {"cpu": store.nbytes}


def test_half_precision_keeps_the_trajectory_in_full() -> None:
    pipe = build("sd3").to(torch.bfloat16)
    inversion = inverted(pipe)

    assert inversion.noise.dtype == torch.float32
    assert not torch.equal(inversion.noise, inversion.noise.bfloat16().float())


def test_several_pictures_are_inverted_as_each_alone() -> None:
    pipe = build("sd1")
    both = invert(pipe, [picture(0), picture(1)], ["a cat", "a frog"], steps=2)
    alone = invert(pipe, picture(1), "a frog", steps=2)

    assert torch.allclose(both.noise[1:], alone.noise, atol=1e-4)


def test_latents_of_frames_can_be_inverted() -> None:
    pipe = build("animatediff")
    latents = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inversion = invert(pipe, latents, "a cat", steps=2, options={"num_frames": 3})

    assert inversion.noise.shape == latents.shape


def test_progress_counts_evaluations_and_may_stop_the_run() -> None:
    pipe, seen = build("sd1"), list[tuple[int, int]]()
    inverted(pipe, refinements=1, on_evaluation=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 2 * STEPS) for i in range(1, 2 * STEPS + 1)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    scheduler = pipe.scheduler
    with pytest.raises(KeyboardInterrupt):
        inverted(pipe, on_evaluation=stop)
    assert pipe.scheduler is scheduler


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("sd1", {"method": "rf-inversion"}, "flow models"),
        ("sd3", {"method": "ddim"}, "flow model; use"),
        ("sd1", {"method": "dddim"}, "did you mean 'ddim'"),
        ("sd1", {"refinements": -1}, "refinements=-1"),
        ("sd1", {"method": "fireflow", "refinements": 1}, "not for 'fireflow'"),
        ("sd1", {"told": "cleaner"}, "told='cleaner'"),
        ("sd1", {"nudge": float("nan")}, "nudge=nan"),
        ("sd3", {"method": "rf-inversion", "gamma": 1.5}, "gamma=1.5"),
        ("sd1", {"guidance": -1}, "guidance=-1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(
    name: str, settings: dict[str, Any], said: str
) -> None:
    pipe, seen = build(name), list[int]()
    with pytest.raises(SettingError, match=said):
        inverted(pipe, on_evaluation=lambda done, total: seen.append(done), **settings)
    assert seen == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sd1_img2img", "no text-to-image pipeline"),
        ("sd1_inpaint9", "no text-to-image pipeline"),
        ("sd1_pix2pix", "takes 8 channels, of which 4 are latents"),
        ("aura_flow", "cannot invert or edit pictures; families that can"),
        ("wan", "cannot invert or edit pictures"),
        ("dit", "no text-to-image pipeline"),
    ],
)
def test_a_family_that_cannot_be_inverted_is_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        invert(build(name), picture(), "a cat", steps=2)


def test_pictures_and_prompts_must_fit() -> None:
    from PIL import Image

    pipe = build("sd1")
    with pytest.raises(SettingError, match="multiples of 2 pixels"):
        invert(pipe, Image.new("RGB", (33, 32)), "a cat")
    with pytest.raises(SettingError, match="one size"):
        invert(pipe, [picture(), Image.new("RGB", (64, 64))], "a cat")
    with pytest.raises(SettingError, match="1 pictures, but 2 prompts"):
        invert(pipe, picture(), ["a cat", "a frog"])
    with pytest.raises(SettingError, match="size="):
        invert(build("flux"), torch.zeros(1, 64, 16), "a cat")


def test_replay_refuses_what_it_cannot_follow() -> None:
    pipe = build("sd3")
    loose = inverted(pipe, method="rf-inversion", consistent=False)
    good = inverted(pipe, refinements=0)
    assert loose.trajectory is None
    with pytest.raises(FeatureError, match="consistent=True"):
        TrajectoryReplay().with_inversion(loose)
    cases = [
        (TrajectoryReplay(), STEPS, ["a cat"], "has no trajectory"),
        (TrajectoryReplay(good.trajectory), STEPS + 1, ["a cat"], "number of steps"),
        (TrajectoryReplay(good.trajectory, source=1), STEPS, ["a cat"], "the run has 1 item"),
    ]
    for replay, steps, prompts, said in cases:
        error = SettingError if "item" in said else FeatureError
        with attnctl.attach(pipe, replay), pytest.raises(error, match=said):
            generate(pipe, prompts, steps=steps)


def test_control_refuses_a_diffusion_model_and_a_missing_source() -> None:
    with (
        attnctl.attach(build("sd1"), RFControl()) as session,
        pytest.raises(UnsupportedModelError, match="flow models"),
    ):
        generate(session._control.pipe)
    pipe = build("sd3")
    with attnctl.attach(pipe, RFControl()), pytest.raises(FeatureError, match="has no source"):
        generate(pipe)
